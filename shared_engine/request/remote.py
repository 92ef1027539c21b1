"""A server at a URL: vLLM, or another with OpenAI's protocol. Never started, stopped or put to sleep from here."""

from __future__ import annotations

from shared_engine.errors import EngineError, ModelNotFoundError, RequestError, VLLMError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.answers import parse_models
from shared_engine.request.client import Client
from shared_engine.request.endpoint import PROBE_TIMEOUT_S, AnotherModelError, Connection, Endpoint
from shared_engine.request.loop_clients import loop_clients
from shared_engine.runtime.record import EngineState
from shared_engine.settings import EngineSettings


class RemoteEndpoint(Endpoint):
    """The server at one URL."""

    def __init__(self, settings: EngineSettings) -> None:
        assert settings.base_url is not None
        key = settings.api_key.get_secret_value() if settings.api_key else None
        self._base_url = settings.base_url
        self._clients = loop_clients(settings.base_url, api_key=key)
        self._is_named = settings.model is not None
        self._model = settings.model
        self._times_renamed = 0

    async def acquire(self) -> Connection:
        client = await self._clients.get()
        if self._model is None:
            self._model = await self._first_model(client)
        return Connection(client, self._model, self._times_renamed)

    def release(self, connection: Connection) -> None:
        pass

    async def _first_model(self, client: Client) -> str:
        models = parse_models(await client.request("GET", "/v1/models", timeout=PROBE_TIMEOUT_S))
        if not models:
            raise RequestError(f"{self._base_url} serves no model")
        name, self.max_model_len = models[0]
        return name

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        if isinstance(error, ModelNotFoundError) and not self._is_named and connection.model in error.message:
            if connection.incarnation == self._times_renamed:  # else another request has noticed it already
                self._model, self.max_model_len, self._times_renamed = None, None, self._times_renamed + 1
            return AnotherModelError(*error.args)
        return error

    async def status(self, *, processes: bool) -> EngineInfo:  # noqa: ARG002
        state, message = EngineState.READY, None
        try:
            await (await self._clients.get()).request("GET", "/health", timeout=PROBE_TIMEOUT_S)
        except RequestError as exc:
            state, message = EngineState.FAILED, str(exc)
        return EngineInfo(state=state, model=self._model, base_url=self._base_url, last_error=message)

    async def observer_client(self) -> Client | None:
        return await self._clients.get()

    async def evict(self, timeout: float) -> None:  # noqa: ARG002
        raise EngineError(f"the server at {self._base_url} is remote: vllm-local never stops a remote server")

    async def shutdown(self, timeout: float, *, force: bool) -> None:  # noqa: ARG002
        await self.evict(timeout)

    async def close(self) -> None:
        await self._clients.close()
