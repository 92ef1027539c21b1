"""From settings to what is to be started: vLLM's command line and environment, the interpreter that has vLLM, and the
installation of one. Starts no engine.
"""
