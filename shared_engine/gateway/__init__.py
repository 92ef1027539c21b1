"""One address for every program: an OpenAI-compatible server before models that come and go. Needs the extra
``gateway``; only ``vllm-local serve`` imports it."""
