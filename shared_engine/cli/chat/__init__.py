"""``vllm-local chat``: a conversation at a terminal. The only part that imports prompt_toolkit and rich."""
