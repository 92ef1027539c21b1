"""One module for each command, imported when it is asked for.

    add_arguments(parser)    what may stand after its name
    run(arguments) -> int    do it; return the exit code
    EXAMPLES                 lines for --help, such as "vllm-local status --watch"
    INTERRUPTED              what Ctrl-C leaves, for people; may be missing

Its name and its one line are in cli/main.py. A command may let VLLMError and OSError through: main.py tells them.
"""
