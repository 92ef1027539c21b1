"""Tokenizes texts without an engine, with the tokenizer that vLLM itself has exported. Must not start or ask an engine,
nor know how a tokenizer follows from a model's files: where vLLM exports none, the server counts.
"""
