"""VLLMTextSplitter: texts cut by the tokens of an engine's model, as a LlamaIndex node parser."""

from __future__ import annotations

from typing import Annotated

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.node_parser.interface import MetadataAwareTextSplitter
from pydantic import ConfigDict, Field

from llama_index_vllm_local._engine_model import LlamaIndexModel
from shared_engine.errors import InvalidInputError
from shared_engine.settings import EngineSettings

METADATA_FORM = 2
"""Tokens for what LlamaIndex writes between metadata and text, as its own splitters reckon."""


class VLLMTextSplitter(LlamaIndexModel, MetadataAwareTextSplitter):
    """A LlamaIndex node parser whose sizes are tokens of the engine's own model, exactly.

    ``llm.text_splitter(chunk_size=512)`` of any class here makes one on its engine; or it takes the settings of one, as
    all classes here do::

        from llama_index_vllm_local import VLLMTextSplitter

        splitter = VLLMTextSplitter(model="Qwen/Qwen3-4B", chunk_size=512, chunk_overlap=50)
        nodes = splitter.get_nodes_from_documents(documents)

    No engine is started where its tokenizer can be used without (Engine.count_tokens). A chunk has at most
    ``chunk_size`` tokens by itself, together with the node's metadata, without those that a model puts around a prompt;
    it is cut between tokens, never inside a character.

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on construction, for an overlap that is not below the size; on a call, for metadata that
            leave no room.
    """

    model_config = ConfigDict(extra="forbid")

    chunk_size: Annotated[int, Field(ge=1)] = 512
    """Tokens of a chunk, at most."""
    chunk_overlap: Annotated[int, Field(ge=0)] = 50
    """Tokens that a chunk shares with the one before; fewer than ``chunk_size``."""

    @classmethod
    def class_name(cls) -> str:
        return "VLLMTextSplitter"

    def _use(self, settings: EngineSettings) -> None:
        super()._use(settings)
        self.engine.plan_chunks(0, size=self.chunk_size, overlap=self.chunk_overlap)  # refuses what makes no sense

    def split_text(self, text: str) -> list[str]:
        """The chunks of one text, in order."""
        return self._split(text, self.chunk_size)

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:
        """The same, smaller by what the node's metadata take."""
        taken = len(self.engine.tokenize(metadata_str)) + METADATA_FORM if metadata_str else 0
        if taken >= self.chunk_size:
            raise InvalidInputError(
                f"a node's metadata have {taken} tokens, and chunk_size = {self.chunk_size}: no room is left for its "
                "text; raise chunk_size, or leave some of the metadata out (excluded_embed_metadata_keys)"
            )
        return self._split(text, self.chunk_size - taken)

    def _split(self, text: str, size: int) -> list[str]:
        with self.callback_manager.event(CBEventType.CHUNKING, payload={EventPayload.CHUNKS: [text]}) as event:
            plan = self.engine.plan_chunks(text, size=size, overlap=min(self.chunk_overlap, size - 1))
            chunks = [text[begin:end] for begin, end in plan.char_spans or ()] or [text]
            event.on_end(payload={EventPayload.CHUNKS: chunks})
        return chunks
