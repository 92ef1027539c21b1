"""JSON schemas that answers are held to: in the form that vLLM's grammars can hold, bounded, and shown to the model.

Pure. Knows no request, and nothing of pydantic's classes.
"""
