"""Counts tokens from a model's own files, exactly or not at all. Owns vLLM's way from messages to a prompt as far as it
is known here. Must not start or ask an engine: where a count could differ, the reason is given and vLLM counts.
"""
