"""What every class here shares: LangChain's names for the settings, its errors, and what its traces show.

Knows nothing of what is asked of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import SecretStr

from langchain_vllm_local._errors import langchain_errors
from shared_engine.adapting.framework_model import EngineModel
from shared_engine.declared import UNSET, Alias
from shared_engine.settings import ENVIRONMENT, SECRET, EngineSettings, PathText

if TYPE_CHECKING:
    from langchain_vllm_local.text_splitter import VLLMTextSplitter

PROVIDER = "vllm"
"""The name that LangChain's traces, profiles and content blocks have for where answers come from."""


class LangChainModel(EngineModel):
    """An object of LangChain whose requests go to a shared engine; mixed into LangChain's base classes."""

    _aliases: ClassVar[Mapping[str, str]] = {
        "model_name": "model",
        "request_timeout": "timeout",
        "openai_api_base": "base_url",
        "openai_api_key": "api_key",
    }
    if TYPE_CHECKING:
        model_name: PathText = UNSET
        request_timeout: Alias[float | None] = UNSET
        openai_api_base: Alias[str | Sequence[str] | None] = UNSET
        openai_api_key: Alias[str | SecretStr | Sequence[str | SecretStr] | None] = UNSET
    else:

        @property
        def model_name(self) -> str | None:
            """The same as ``model``, under the name that LangChain's tools look for."""
            return self.model

    # ---- the engine

    def warmup(self) -> None:
        """Return when the engine is ready, starting it if need be."""
        with langchain_errors():
            super().warmup()

    async def awarmup(self) -> None:
        """See ``warmup``."""
        with langchain_errors():
            await super().awarmup()

    def text_splitter(self, *, chunk_size: int = 512, chunk_overlap: int = 50, **options: Any) -> VLLMTextSplitter:
        """A LangChain text splitter by the tokens of this model; needs langchain-text-splitters.

        Args:
            options: of VLLMTextSplitter.
        """
        from langchain_vllm_local.text_splitter import VLLMTextSplitter

        return VLLMTextSplitter(self.engine, chunk_size=chunk_size, chunk_overlap=chunk_overlap, **options)

    # ---- what traces, caches and files show

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {name: ENVIRONMENT[name] for name in SECRET}

    def _use(self, settings: EngineSettings) -> None:
        super()._use(settings)
        self._forget_description()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self._forget_description()

    def _forget_description(self) -> None:
        # Core computes it once, and makes cache keys of it: after a change it would be the other model's.
        self.__dict__.pop("_serialized", None)
