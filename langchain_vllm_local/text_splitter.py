"""VLLMTextSplitter: texts cut by the tokens of an engine's model, as a LangChain text splitter."""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.documents import Document

from langchain_vllm_local._errors import langchain_errors
from shared_engine import ChunkPlan, Engine

try:
    from langchain_text_splitters import TextSplitter
except ImportError as exc:
    raise ImportError(
        "langchain-text-splitters is not installed here: pip install 'vllm-local[text-splitters]'"
    ) from exc


class VLLMTextSplitter(TextSplitter):
    """A LangChain text splitter whose sizes are tokens of the engine's own model, exactly.

    ``llm.text_splitter(chunk_size=512)`` of any class here makes one on its engine; no engine is started where its
    tokenizer can be used without (Engine.count_tokens).

    A chunk has at most ``chunk_size`` tokens by itself, without those that a model puts around a prompt; it is cut
    between tokens, never inside a character. ``create_documents`` gives each its exact ``start_index``.

    Args:
        engine: or the settings of one, as keywords.
        chunk_overlap: tokens that a chunk shares with the one before; fewer than ``chunk_size``.
        add_start_index: put where a chunk begins in its text into its metadata.
        strip_whitespace: of both ends of each chunk; then chunks no longer add up to the text.

    Raises:
        InvalidInputError: a size is out of range.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        chunk_size: int = 512,
        chunk_overlap: int = 50,
        add_start_index: bool = False,
        strip_whitespace: bool = False,
        **settings: Any,
    ) -> None:
        self.engine = Engine(**settings) if engine is None else engine
        with langchain_errors():
            self.engine.plan_chunks(0, size=chunk_size, overlap=chunk_overlap)  # refuses what makes no sense
        super().__init__(
            chunk_size,
            chunk_overlap,
            length_function=self._length,
            add_start_index=add_start_index,
            strip_whitespace=strip_whitespace,
        )

    def split_text(self, text: str) -> list[str]:
        """The chunks of one text, in order."""
        return [chunk for _, chunk in self._chunks(text)]

    def create_documents(self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None) -> list[Document]:
        """A document for each chunk of each text, with the text's metadata."""
        documents = []
        for text, metadata in zip(texts, metadatas or [{}] * len(texts), strict=True):
            for start, chunk in self._chunks(text):
                place = {"start_index": start} if self._add_start_index else {}
                documents.append(Document(page_content=chunk, metadata={**copy.deepcopy(metadata), **place}))
        return documents

    def _chunks(self, text: str) -> list[tuple[int, str]]:
        with langchain_errors():
            plan: ChunkPlan = self.engine.plan_chunks(text, size=self._chunk_size, overlap=self._chunk_overlap)
        chunks = [(begin, text[begin:end]) for begin, end in plan.char_spans or ()]
        if not self._strip_whitespace:
            return chunks
        stripped = [(begin + len(chunk) - len(chunk.lstrip()), chunk.strip()) for begin, chunk in chunks]
        return [(begin, chunk) for begin, chunk in stripped if chunk]

    def _length(self, text: str) -> int:
        with langchain_errors():
            return len(self.engine.tokenize(text))
