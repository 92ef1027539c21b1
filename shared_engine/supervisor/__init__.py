"""The process that owns one engine: starts it, watches it, puts it to sleep, evicts it. Knows nothing of settings or
prompts. Standard library only: one such process lives beside each engine.
"""
