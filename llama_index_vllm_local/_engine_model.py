"""What every class here shares: LlamaIndex's dicts and pickles of an object whose requests go to a shared engine.

Knows nothing of what is asked of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from shared_engine.adapting.framework_model import EngineModel
from shared_engine.declared import UNSET, Alias
from shared_engine.settings import EngineFields

if TYPE_CHECKING:
    from llama_index_vllm_local.text_splitter import VLLMTextSplitter


class LlamaIndexModel(EngineModel):
    """An object of LlamaIndex whose requests go to a shared engine; mixed into LlamaIndex's base classes.

    ``api_base``, LlamaIndex's name for it, is understood as ``base_url``.
    """

    _aliases: ClassVar[Mapping[str, str]] = {"api_base": "base_url"}
    if TYPE_CHECKING:
        api_base: Alias[str | Sequence[str] | None] = UNSET

    def text_splitter(self, *, chunk_size: int = 512, chunk_overlap: int = 50, **options: Any) -> VLLMTextSplitter:
        """A LlamaIndex node parser by the tokens of this model.

        Args:
            options: of VLLMTextSplitter.
        """
        from llama_index_vllm_local.text_splitter import VLLMTextSplitter

        settings = self._engine.settings
        own = {name: getattr(settings, name) for name in settings.model_fields_set if name in EngineFields.model_fields}
        return VLLMTextSplitter(**{**own, "chunk_size": chunk_size, "chunk_overlap": chunk_overlap, **options})

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings that were given, without secrets; what was not stays up to the reader's environment."""
        as_dict: dict[str, Any] = super().to_dict(**{"exclude_unset": True, **kwargs})  # type: ignore[misc]
        return as_dict

    def __setstate__(self, state: dict[Any, Any]) -> None:
        # Not by __init__, as LlamaIndex does: what another process read from its environment would become given here.
        # LlamaIndex leaves out of a pickle what can't be in one, such as callbacks.
        BaseModel.__setstate__(self, self._completed(state))
        self._use(self._current_settings())
