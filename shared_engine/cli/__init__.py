"""The ``vllm-local`` command. Owns words, tables and exit codes. Engines are found by ``observe``, ended through
``runtime.control``, made by ``launch``; must not decide anything about an engine itself.
"""
