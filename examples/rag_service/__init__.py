"""A small RAG service: the same app in LangChain and in LlamaIndex. README.md says how it is run."""
