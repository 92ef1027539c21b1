"""Ollama's protocol, for programs that speak no other: translated to vLLM's, and its answers back.

After Ollama's own api/types.go and server/routes.go.
"""
