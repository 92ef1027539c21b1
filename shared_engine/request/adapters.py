"""The LoRA adapters of an engine: which names there are, and that vLLM has loaded the one that a request names.

vLLM knows an adapter by its name and a hash of its files. So processes that use one name for different folders share an
engine, files that changed are other ones, and to load an adapter that is there already changes nothing. What was loaded
is remembered for one start of the engine; that another process has unloaded it, vLLM says by a 404.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared_engine.declared import Decides
from shared_engine.errors import InvalidInputError, ModelNotFoundError, RequestRejectedError, ServerError
from shared_engine.launch.adapters import lora_args, modules_of, problem_of, takes_adapters
from shared_engine.launch.spec import resolve_model
from shared_engine.model_files.adapter import Adapter, read_adapter
from shared_engine.request.bodies import encode
from shared_engine.request.client import Client
from shared_engine.request.refusals import says_engine_failed, says_loaded_before
from shared_engine.request.routes import LOAD_ADAPTER, UNLOAD_ADAPTER
from shared_engine.request.shared_tasks import SharedTasks
from shared_engine.request.threads import in_a_thread
from shared_engine.settings import SETTINGS, EngineSettings

LOAD_TIMEOUT_S = 300.0


@dataclass
class _Shared:
    """What all objects of this process know of one engine.

    Attributes:
        args: vLLM's for adapters.
        paths: of the adapters that were loaded at run time, by name.
        served: what vLLM calls an adapter that it has loaded, by start of the engine, name and path. A start is named
            by the endpoint, which may be one of several.
    """

    args: Mapping[str, Any]
    paths: dict[str, str] = field(default_factory=dict)
    served: dict[tuple[Hashable, str, str], str] = field(default_factory=dict)
    loading: SharedTasks = field(default_factory=SharedTasks)


_of_engines: dict[Hashable, _Shared] = {}


def _forget_in_child() -> None:
    for shared in _of_engines.values():
        shared.loading.forget()


os.register_at_fork(after_in_child=_forget_in_child)


class Adapters:
    """The adapters of one engine of ours. Constructing this reads no file."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._known: _Shared | None = None

    @property
    def _shared(self) -> _Shared:
        if self._known is None:
            decisive = [name for name, each in SETTINGS.items() if each.decides is Decides.ENGINE and name != "model"]
            values = [repr(getattr(self._settings, name)) for name in decisive]
            args = lora_args(self._settings)
            self._known = _of_engines.setdefault((resolve_model(self._settings), *values, repr(args)), _Shared(args))
        return self._known

    @property
    def paths(self) -> dict[str, str]:
        """Folder, or hub id, by name, of those that a request may name."""
        return {**self._shared.paths, **(self._settings.lora_adapters or {})}

    def is_model(self, name: str) -> bool:
        """True for the model itself, which is no adapter."""
        return name in (self._settings.model, resolve_model(self._settings))

    def check(self, name: str, parameter: str) -> None:
        """
        Raises:
            InvalidInputError: this engine has neither a model nor an adapter of this name.
        """
        if self.is_model(name) or name in self._names():
            return
        if not takes_adapters(self._settings):
            what = f"{parameter} = {name!r}: a local engine serves one model, here {self._settings.model!r}"
            raise InvalidInputError(
                f"{what}, and takes adapters with lora_adapters={{{name!r}: '<folder>'}}; another model is another "
                f"Engine, ChatVLLM, VLLM, ..."
            )
        raise InvalidInputError(f"{parameter} = {name!r}: there is no such adapter: {self._what_there_is()}")

    def _names(self) -> list[str]:
        return [*self.paths, *modules_of(self._settings.engine_args)]

    def _what_there_is(self) -> str:
        names = ", ".join(map(repr, self._names())) or "none yet"
        return f"{self._settings.model} has {names}; add it to lora_adapters, or call Engine.load_adapter"

    async def served_name(self, name: str, client: Client, start: Hashable) -> str:
        """What vLLM calls the adapter ``name``, which is loaded now, if it was not.

        Raises:
            InvalidInputError: there is none of this name, or none in its folder.
            RequestRejectedError: vLLM does not take it.
        """
        path = self.paths.get(name)
        if path is None:
            self.check(name, "lora")
            return name  # vLLM has loaded it at its start
        served = self._shared.served.get((start, name, path))
        return served or await self._load_once(name, path, client, start)

    def forget(self, served: str) -> None:
        """vLLM does not have it any more: the next request that names it has it loaded."""
        known = self._shared.served
        for key in [key for key, value in list(known.items()) if value == served]:
            known.pop(key, None)

    # ---- at run time

    async def check_new(self, name: str, path: str) -> None:
        """
        Raises:
            InvalidInputError: ``path`` is not an adapter that fits, or the name is another one's.
        """
        if not takes_adapters(self._settings):
            raise InvalidInputError(
                "this engine takes no adapters: pass lora_adapters={} to its constructor, which is another engine"
            )
        own = (self._settings.lora_adapters or {}).get(name, path)
        if own != path:
            raise InvalidInputError(
                f"{name!r} is {own} in lora_adapters: choose another name, or make another Engine with other "
                "lora_adapters, which shares the same vLLM"
            )
        if not name or self.is_model(name) or name in modules_of(self._settings.engine_args):
            raise InvalidInputError(f"name = {name!r}: choose another one: the model, or one of lora_modules, has it")
        await in_a_thread(lambda: self._read(name, path))

    async def load(self, name: str, path: str, client: Client, start: Hashable) -> None:
        """Load it, with what its files are now, and know it from now on."""
        self._shared.served.pop((start, name, path), None)
        await self._load_once(name, path, client, start)
        self.know(name, path)

    def know(self, name: str, path: str) -> None:
        """Have it loaded when a request names it."""
        if name not in (self._settings.lora_adapters or {}):
            self._shared.paths[name] = path

    async def unload(self, name: str, client: Client | None) -> None:
        """Have vLLM forget it. One that was loaded at run time is not known any more; one of the settings is loaded
        again when a request names it.

        Args:
            client: of the engine, if it is up.

        Raises:
            InvalidInputError: there is none of this name.
        """
        if name not in self.paths:
            raise InvalidInputError(f"name = {name!r}: there is no such adapter: {self._what_there_is()}")
        self._shared.paths.pop(name, None)
        for key, served in list(self._shared.served.items()):
            if key[1] == name:
                self._shared.served.pop(key, None)
                if client is not None:
                    try:
                        await client.request("POST", UNLOAD_ADAPTER, encode({"lora_name": served}), LOAD_TIMEOUT_S)
                    except ModelNotFoundError:  # another process was faster, or it is a start later
                        continue

    # ---- one adapter

    async def _load_once(self, name: str, path: str, client: Client, start: Hashable) -> str:
        """All requests of this loop that name it wait for one loading. Cancelling one stops its waiting only."""
        return await self._shared.loading.run((start, name, path), lambda: self._load(name, path, client, start))

    async def _load(self, name: str, path: str, client: Client, start: Hashable) -> str:
        adapter = await in_a_thread(lambda: self._read(name, path))
        served = f"{name}-{adapter.version}"
        where = str(adapter.folder or adapter.path)
        try:
            await client.request("POST", LOAD_ADAPTER, load_body(served, where), LOAD_TIMEOUT_S)
        except (RequestRejectedError, ServerError) as exc:
            if says_engine_failed(exc):
                raise
            if not says_loaded_before(exc):
                raise RequestRejectedError(
                    f"vLLM can't load the adapter {name!r} ({path}): {exc.message}", 400
                ) from exc
        known = self._shared.served
        for key in [key for key in list(known) if key[0] != start]:
            known.pop(key, None)  # of a start before
        known[start, name, path] = served
        return served

    def _read(self, name: str, path: str) -> Adapter:
        try:
            adapter = read_adapter(path)
            problem = problem_of(adapter, self._settings, self._shared.args)
        except ValueError as exc:
            problem = str(exc)
        if problem is not None:
            raise InvalidInputError(f"the adapter {name!r} ({path}): {problem}")
        return adapter


def load_body(name: str, path: str) -> bytes:
    return encode({"lora_name": name, "lora_path": path})
