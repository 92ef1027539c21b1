"""VLLM: the shared engine as a LangChain text model, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.llms import BaseLLM
from pydantic import ConfigDict

from langchain_vllm_local._answers import streamed_llm_result, to_llm_result, to_text_chunk
from langchain_vllm_local._batches import Batches
from langchain_vllm_local._errors import langchain_errors
from langchain_vllm_local._language_model import LanguageModel

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
    from langchain_core.outputs import GenerationChunk, LLMResult
    from langchain_core.runnables import RunnableConfig


class VLLM(LanguageModel, Batches[str], BaseLLM):
    """A LangChain text model on a local vLLM, which continues text as it is; for a model tuned for chat, use ChatVLLM.

    The engine starts on the first call and is shared by every object and process with equal settings, ChatVLLM's too.

    Setup::

        pip install "vllm-local[langchain]" && vllm-local install

    Settings and request parameters are arguments and keywords as for ChatVLLM::

        from langchain_vllm_local import VLLM

        llm = VLLM(model="Qwen/Qwen3-4B-Base", temperature=0.0, max_tokens=64)  # starts nothing yet
        print(llm.invoke("The Rhine flows through"))

    Stream; leaving the loop early aborts the request in vLLM::

        for text in llm.stream("The Rhine flows through"):
            print(text, end="", flush=True)

    Batch; all prompts go to the engine at once::

        texts = llm.batch(["The Rhine flows through", "The Danube flows through"])

    More in docs/langchain.md, section "Text models".

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors; each is also a class of langchain_core.exceptions,
            such as ContextOverflowError or ModelTimeoutError.
    """

    model_config = ConfigDict(extra="forbid")

    @property
    def _llm_type(self) -> str:
        return "vllm-local"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._ls_params("llm", stop, kwargs)

    # ---- the four ways to ask

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self._streams(prompts, kwargs):
            return streamed_llm_result(list(self._stream(prompts[0], stop, run_manager, **kwargs)))
        with langchain_errors():
            return to_llm_result(self.engine.generate_batch(prompts, self._params(stop, kwargs)))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self._streams(prompts, kwargs):
            stream = self._astream(prompts[0], stop, run_manager, **kwargs)
            return streamed_llm_result([chunk async for chunk in stream])
        with langchain_errors():
            return to_llm_result(await self.engine.agenerate_batch(prompts, self._params(stop, kwargs)))

    def _streams(self, prompts: Sequence[str], call: Mapping[str, Any]) -> bool:
        # With several prompts or answers, callbacks could not know to which one a token belongs.
        return bool(self.streaming) and len(prompts) == 1 and (call.get("n") or self.n or 1) == 1

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with langchain_errors():
            params = self._params(stop, kwargs, stream=True)
            with closing(self.engine.stream_generate(prompt, params)) as pieces:
                for piece in pieces:
                    chunk = to_text_chunk(piece)
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        with langchain_errors():
            params = self._params(stop, kwargs, stream=True)
            async with aclosing(self.engine.astream_generate(prompt, params)) as pieces:
                async for piece in pieces:
                    chunk = to_text_chunk(piece)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    # ---- many at once

    def batch(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Continue each input, in order; ``use_tqdm`` shows a progress bar. See Runnable.batch."""
        if return_exceptions or use_tqdm or _has_run_id(config):
            # One request for all, as BaseLLM makes it, would give the first error to every input, and drop run IDs.
            return super().batch(inputs, config, return_exceptions=return_exceptions, use_tqdm=use_tqdm, **kwargs)
        return BaseLLM.batch(self, list(inputs), config, **kwargs)

    async def abatch(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """See ``batch``."""
        if return_exceptions or use_tqdm or _has_run_id(config):
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, use_tqdm=use_tqdm, **kwargs
            )
        return await BaseLLM.abatch(self, list(inputs), config, **kwargs)


def _has_run_id(config: RunnableConfig | list[RunnableConfig] | None) -> bool:
    return any("run_id" in each for each in (config if isinstance(config, list) else [config or {}]))
