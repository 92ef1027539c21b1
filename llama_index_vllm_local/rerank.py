"""VLLMRerank: the shared engine as a LlamaIndex postprocessor that keeps the nodes that fit the query best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field

from llama_index_vllm_local._engine_model import LlamaIndexModel
from shared_engine.adapting.framework_model import PoolingModel
from shared_engine.adapting.pooling_requests import PartialList, RerankRequest
from shared_engine.errors import InvalidInputError
from shared_engine.results import RerankResult

dispatcher = get_dispatcher(__name__)


class VLLMRerank(LlamaIndexModel, PoolingModel, BaseNodePostprocessor):
    """A LlamaIndex postprocessor that keeps the nodes that fit the query best, on a local vLLM, which starts on the
    first call and is shared by every object and process with equal settings.

    Its engine is separate from an LLM's; on one GPU, give each its share of the memory with
    ``gpu_memory_utilization``.

    Setup::

        pip install "vllm-local[llama-index]" && vllm-local install

    The model is a cross-encoder with one label, or an embedding model, whose score is the cosine of query and text.
    Every setting of shared_engine.EngineSettings is an argument, under its own name, with its environment variable::

        from llama_index_vllm_local import VLLMRerank

        reranker = VLLMRerank(model="BAAI/bge-reranker-base", top_n=3)  # starts nothing yet

    In a query engine that fetches more than is needed::

        query_engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])

    Or on its own; the best nodes come back, best first, each with its new score::

        for node in reranker.postprocess_nodes(nodes, query_str="Which river flows through Basel?"):
            print(node.score, node.text)

    A node's text is what LlamaIndex embeds of it: with its metadata, without ``excluded_embed_metadata_keys``.

    docs/llama_index.md, section "RAG, embeddings, reranking", shows the rest: language models as rerankers, nodes that
    are too long, remote servers.

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: Annotated[int | None, Field(ge=1)] = 2
    """How many nodes to keep. None: all."""
    keep_retrieval_score: bool = False
    """Put the score that a node came with into its metadata, as ``retrieval_score``."""

    @classmethod
    def class_name(cls) -> str:
        return "VLLMRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """The ``top_n`` nodes that fit the query best, best first. Those that were given stay as they are.

        The list has ``failures`` (``index`` and ``error`` of each node that has no score, see ``on_error``) and
        ``indices``.
        """
        query = _checked(query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as ranked:
            return ranked(self.engine.rerank(**self._request(nodes, query)))

    @dispatcher.span  # LlamaIndex opens one around the synchronous method only
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """See ``_postprocess_nodes``."""
        query = _checked(query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as ranked:
            return ranked(await self.engine.arerank(**self._request(nodes, query)))

    def _request(self, nodes: Sequence[NodeWithScore], query: QueryBundle) -> RerankRequest:
        return RerankRequest(
            query=query.query_str,
            documents=[node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes],
            top_n=self.top_n,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            lora=self.lora,
            on_error=self.on_error,
            extra_body=self.extra_body,
        )

    @contextmanager
    def _reported(
        self, nodes: list[NodeWithScore], query: QueryBundle
    ) -> Iterator[Callable[[RerankResult], list[NodeWithScore]]]:
        """Report the call to LlamaIndex's listeners; yields what makes nodes of the result, and reports those."""
        name, top_n = self.model or "unknown", self.top_n or len(nodes)
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=name))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:

            def ranked(result: RerankResult) -> list[NodeWithScore]:
                scored = [self._scored(nodes[each.index], each.relevance_score) for each in result.results]
                best = PartialList(scored, result.failures, result.indices)
                event.on_end(payload={EventPayload.NODES: best})
                dispatcher.event(ReRankEndEvent(nodes=best))
                return best

            yield ranked

    def _scored(self, given: NodeWithScore, score: float) -> NodeWithScore:
        if not self.keep_retrieval_score:
            return NodeWithScore(node=given.node, score=score)
        metadata = {**given.node.metadata, "retrieval_score": given.score}
        return NodeWithScore(node=given.node.model_copy(update={"metadata": metadata}), score=score)


def _checked(query_bundle: QueryBundle | None) -> QueryBundle:
    if query_bundle is None:
        raise InvalidInputError("no query to rank the nodes by: pass query_str or query_bundle")
    return query_bundle
