"""The menu of the site: how the pages of ``docs/`` are grouped. A test holds that every page is here once."""

from __future__ import annotations

HOME = "index"
LAST = "Project"

GROUPS: dict[str, dict[str, str]] = {
    "First steps": {
        "start": "Start in five minutes",
        "faq": "FAQ",
        "migration": "Migrate from ...",
    },
    "Use it": {
        "langchain": "LangChain",
        "llama_index": "LlamaIndex",
        "engine": "Engine",
        "cli": "Command line",
        "gateway": "Gateway",
    },
    "Prompts and answers": {
        "structured": "Structured output, by type",
        "messages": "Messages",
        "context": "Context budget",
        "lora": "LoRA adapters",
        "reproducible": "Reproducible answers",
    },
    "Run it": {
        "scale": "Scale",
        "hosts": "Where an app runs",
        "metrics": "Metrics and traces",
    },
    "Look it up": {
        "settings": "Settings",
        "errors": "Errors",
        "troubleshooting": "Troubleshooting",
        "api": "API reference",
        "versions": "vLLM's versions",
    },
    LAST: {
        "architecture": "Architecture",
        "features": "Features and their tests",
    },
}
"""Heading of a group -> its pages, and what the menu calls them."""

BELOW: dict[str, dict[str, str]] = {
    "migration": {
        "from-vllm-serve": "vllm serve",
        "from-chatopenai": "ChatOpenAI",
        "from-chatollama": "ChatOllama",
        "from-community-vllm": "VLLM of langchain-community",
        "from-llama-index-vllm": "Vllm of LlamaIndex",
        "from-openai-like": "OpenAILike",
        "from-own-wrappers": "A wrapper of your own",
    },
    "engine": {
        "openai_client": "openai clients",
        "direct": "vLLM in your process",
    },
    "cli": {
        "chat": "Ask and chat",
        "batch": "A file of requests",
    },
    "gateway": {
        "service": "As a service",
        "serve_tcp": "A port of one engine",
    },
    "scale": {
        "replicas": "Replicas",
        "parallel": "One engine on several devices",
        "fleets": "Fleets of servers",
        "deploy": "Containers and Kubernetes",
    },
    "metrics": {
        "gpu": "GPUs",
        "logging": "Logging",
    },
    "api": {
        "api-shared_engine": "shared_engine",
        "api-langchain": "langchain_vllm_local",
        "api-llama_index": "llama_index_vllm_local",
    },
    "features": {
        "public-reports": "What users report, tried here",
        "evidence-langchain": "Evidence: LangChain",
        "evidence-llama_index": "Evidence: LlamaIndex",
        "evidence-fleets": "Fleets beside routers",
        "gateway-peers": "The gateway beside others",
        "cli-peers": "The command line beside others",
    },
}
"""Page -> the pages that the menu shows below it."""

OF_THE_REPOSITORY = {
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changes",
    "SECURITY.md": "Security",
    "benchmarks/NOTES.md": "What was measured",
}
"""Files that are read where the source is, at the end of the last group."""


def pages() -> list[str]:
    """All of them, as the menu has them."""
    found = [HOME]
    for group in GROUPS.values():
        for page in group:
            found += [page, *BELOW.get(page, {})]
    return found
