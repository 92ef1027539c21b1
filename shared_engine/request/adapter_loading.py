"""LoRA adapters of an Engine, loaded and unloaded while it runs."""

from __future__ import annotations

import os

from shared_engine.errors import InvalidInputError
from shared_engine.machine.home import expanded
from shared_engine.request.lifecycle import Lifecycle
from shared_engine.request.twins import blocking


class AdapterLoading(Lifecycle):
    """See the module's docstring. Those of the setting ``lora_adapters`` need none of this: each is loaded by the first
    request that names it.
    """

    @property
    def adapters(self) -> dict[str, str]:
        """Folder, or hub id, by name of the adapters that requests may name; of a remote server only it knows."""
        return self._requests.endpoint.adapters

    async def aload_adapter(self, name: str, path: str | os.PathLike[str]) -> None:
        """Load a LoRA adapter, starting the engine if need be; requests name it by ``lora=name``.

        All objects of this process with equal settings know it from then on, and it is loaded again by itself when the
        engine was evicted, or has died. To load it again takes up changed files. On a remote server ``path`` is the
        server's.

        Raises:
            InvalidInputError: there is no adapter, it was made for another model, its rank is above what the engine
                takes, or the name is taken; before anything starts.
            RequestRejectedError: vLLM does not take it.
            EngineError: a remote server that loads no adapters at run time.
        """
        await self._requests.load_adapter(_checked(name), self._path(path))

    load_adapter = blocking(aload_adapter)

    async def aunload_adapter(self, name: str) -> None:
        """Have the engine forget an adapter; requests that it answers are finished. Starts nothing.

        One of ``lora_adapters`` is loaded again when a request names it. So is one that another process has loaded, by
        that process.

        Raises:
            InvalidInputError: there is none of this name.
            EngineError: a remote server that unloads no adapters at run time.
        """
        await self._requests.endpoint.unload_adapter(_checked(name))

    unload_adapter = blocking(aunload_adapter)

    def _path(self, path: str | os.PathLike[str]) -> str:
        given = os.fspath(path)
        if not isinstance(given, str) or not given:
            raise InvalidInputError(f"path = {path!r}: must be the folder of an adapter")
        is_here = not self.settings.is_remote and expanded(given).exists()
        return os.path.abspath(expanded(given)) if is_here else given


def _checked(name: str) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidInputError(f"name = {name!r}: must be a name for the adapter")
    return name
