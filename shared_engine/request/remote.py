"""A server at a URL: vLLM, or another with OpenAI's protocol. Never started, stopped or put to sleep from here."""

from __future__ import annotations

import os
from base64 import b64encode

from pydantic import SecretStr

from shared_engine.errors import EngineError, ModelNotFoundError, RequestError, RequestRejectedError, VLLMError
from shared_engine.machine.home import expanded
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.adapters import LOAD_TIMEOUT_S, load_body
from shared_engine.request.answers import parse_models
from shared_engine.request.bodies import encode
from shared_engine.request.client import Client
from shared_engine.request.endpoint import PROBE_TIMEOUT_S, AnotherModelError, Connection, Endpoint
from shared_engine.request.http_options import HeaderPairs, HttpOptions, header_pairs
from shared_engine.request.loop_clients import loop_clients
from shared_engine.request.routes import LOAD_ADAPTER, MODELS, UNLOAD_ADAPTER
from shared_engine.request.tally import EngineName
from shared_engine.runtime.record import EngineState
from shared_engine.settings import EngineSettings

NO_SUCH_ROUTE = (404, 405)
MAX_NAMED = 20


class RemoteEndpoint(Endpoint):
    """The server at one URL."""

    def __init__(self, settings: EngineSettings) -> None:
        assert isinstance(settings.base_url, str)
        self._base_url = settings.base_url
        self._clients = loop_clients(settings.base_url, options=http_options(settings))
        # Where it stands in for an engine of this machine, a folder there has another name, or none.
        is_folder_here = (
            not settings.is_remote and settings.model is not None and os.path.exists(expanded(settings.model))
        )
        self._model = None if is_folder_here else settings.model
        self._is_named = self._model is not None
        self._named = settings.model or ""
        self._times_renamed = 0

    @property
    def name(self) -> EngineName:
        return EngineName(self._named, self._base_url)

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        client = (await self._clients.get()).with_headers(headers)
        if self._model is None:
            self._model = await self._first_model(client)
        return Connection(client, self._model, self._times_renamed)

    def release(self, connection: Connection) -> None:
        pass

    async def _first_model(self, client: Client) -> str:
        try:
            models = parse_models(await client.request("GET", MODELS, timeout=PROBE_TIMEOUT_S))
        except ModelNotFoundError as exc:
            message = f"{self._base_url} does not list its models: name one with model=... ({exc.message})"
            raise ModelNotFoundError(message, exc.status) from exc
        if not models:
            raise RequestError(f"{self._base_url} serves no model")
        name, self.max_model_len = models[0]
        return name

    async def check_health(self, client: Client) -> None:
        """By /health only where that is vLLM's: LiteLLM's asks all of its models for an answer, others have none."""
        try:
            models = parse_models(await client.request("GET", MODELS, timeout=PROBE_TIMEOUT_S))
        except ModelNotFoundError:
            models = None
        if models is None:
            await super().check_health(client)
        elif any(max_model_len is not None for _, max_model_len in models):
            try:
                await super().check_health(client)
            except RequestRejectedError as exc:
                if exc.status not in NO_SUCH_ROUTE:
                    raise

    async def load_adapter(self, name: str, path: str, connection: Connection) -> None:
        await self._ask_about_adapter(name, LOAD_ADAPTER, load_body(name, path), connection.client)

    async def unload_adapter(self, name: str) -> None:
        body = encode({"lora_name": name})
        await self._ask_about_adapter(name, UNLOAD_ADAPTER, body, await self._clients.get())

    async def _ask_about_adapter(self, name: str, route: str, body: bytes, client: Client) -> None:
        try:
            await client.request("POST", route, body, LOAD_TIMEOUT_S)
        except RequestError as exc:
            exc.should_retry = False if exc.status == 500 else exc.should_retry  # what it does not take, it never will
            if exc.status not in NO_SUCH_ROUTE or name in exc.message:
                raise
            raise EngineError(
                f"the server at {self._base_url} neither loads nor unloads adapters at run time: vLLM does with "
                "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
            ) from exc

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        if isinstance(error, ModelNotFoundError) and connection.model != self._model:
            return await self._naming_models(error, connection)
        if isinstance(error, ModelNotFoundError) and not self._is_named and connection.model in error.message:
            if connection.incarnation == self._times_renamed:  # else another request has noticed it already
                self._model, self.max_model_len, self._times_renamed = None, None, self._times_renamed + 1
            return AnotherModelError(*error.args)
        return error

    async def _naming_models(self, error: ModelNotFoundError, connection: Connection) -> ModelNotFoundError:
        """The error of a model or adapter that a request has named, with the names that there are."""
        try:
            models = parse_models(await connection.client.request("GET", MODELS, timeout=PROBE_TIMEOUT_S))
        except RequestError:
            return error
        names = [name for name, _ in models]
        if not names or connection.model in names:
            return error
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        has = ", ".join(map(repr, names[:MAX_NAMED])) + more
        return ModelNotFoundError(f"{error.message} ({self._base_url} has {has})", error.status)

    async def status(self, *, processes: bool) -> EngineInfo:  # noqa: ARG002
        state, message = EngineState.READY, None
        try:
            await self.check_health(await self._clients.get())
        except RequestError as exc:
            state, message = EngineState.FAILED, str(exc)
        return EngineInfo(state=state, mode="remote", model=self._model, base_url=self._base_url, last_error=message)

    async def observer_client(self) -> Client | None:
        return await self._clients.get()

    async def evict(self, timeout: float) -> None:  # noqa: ARG002
        raise EngineError(f"the server at {self._base_url} is remote: vllm-local never stops a remote server")

    async def shutdown(self, timeout: float, *, force: bool) -> None:  # noqa: ARG002
        await self.evict(timeout)

    async def close(self) -> None:
        await self._clients.close()


def http_options(settings: EngineSettings) -> HttpOptions:
    """How the settings want a server to be reached."""
    authorization = {}
    assert not isinstance(settings.api_key, tuple), "a fleet's members have one each"
    assert not isinstance(settings.basic_auth, tuple)
    if settings.api_key:
        authorization["Authorization"] = SecretStr(f"Bearer {settings.api_key.get_secret_value()}")
    if settings.basic_auth:
        encoded = b64encode(settings.basic_auth.get_secret_value().encode()).decode()
        authorization["Authorization"] = SecretStr(f"Basic {encoded}")
    return HttpOptions(
        headers=header_pairs(authorization, settings.default_headers),
        query=tuple((settings.default_query or {}).items()),
        proxy=settings.proxy,
        proxy_auth=settings.proxy_auth.get_secret_value() if settings.proxy_auth else None,
        ssl_verify=settings.ssl_verify,
        ssl_ca_certs=settings.ssl_ca_certs,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
