"""The routes of a vLLM server that requests go to."""

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"  # the one of vLLM's three such routes that other servers have too, and that an API key guards
RERANK_UNREAD = "/v2/rerank"  # another name for it in vLLM, which routers pass on as it is
POOLING = "/pooling"
TOKENIZE = "/tokenize"
MODELS = "/v1/models"
HEALTH = "/health"
METRICS = "/metrics"
LOAD_ADAPTER = "/v1/load_lora_adapter"
UNLOAD_ADAPTER = "/v1/unload_lora_adapter"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
