"""What a model can be asked for, by its settings and its files. Asks no server."""

from __future__ import annotations

from shared_engine.adapting.model_facts import has_chat_template, media_inputs, parsed
from shared_engine.model_files.folder import kind_of, read_json
from shared_engine.settings import EngineSettings

_OF_KIND = {
    "chat": ["chat", "completions"],
    "text": ["completions"],
    "embed": ["embeddings", "rerank", "score"],
    "rerank": ["rerank", "score", "classify"],
}


def capabilities_of(settings: EngineSettings) -> list[str] | None:
    """Such as ``chat``, ``embeddings``, ``tools``, ``reasoning``, ``image``; None where nothing is known yet."""
    folder = settings.model_folder()
    config = {} if folder is None else read_json(folder / "config.json")
    if folder is None or not config:
        return None
    kind = kind_of(folder, config)
    if settings.engine_args.get("runner") == "pooling" and kind != "rerank":
        kind = "embed"
    elif kind == "text" and has_chat_template(settings):
        kind = "chat"
    found = list(_OF_KIND[kind])
    parsers = parsed(settings)
    if kind == "chat" and parsers is not None:
        found += [name for name, has in (("tools", parsers.tool_calls), ("reasoning", parsers.reasoning)) if has]
    return found + sorted(media_inputs(settings) or ())
