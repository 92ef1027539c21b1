"""An engine under this process: vLLM's application called here, its EngineCore a child of the app."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from shared_engine.direct.engine import DirectEngine, Held, direct_engine
from shared_engine.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineStartTimeoutError,
    EngineStoppedError,
)
from shared_engine.launch.interpreter import interpreter_here
from shared_engine.launch.keeping import keep_policy
from shared_engine.launch.spec import engine_spec
from shared_engine.machine.hub_cache import called
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.client import Client
from shared_engine.request.endpoint import Connection
from shared_engine.request.engine_endpoint import EngineEndpoint
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.in_process import in_process_client
from shared_engine.request.log_forwarding import forward_log, stop_forwarding
from shared_engine.request.progress_bar import StartReporter
from shared_engine.request.shared_tasks import SharedTasks
from shared_engine.request.supervisor_client import end_error
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.record import EngineState
from shared_engine.runtime.spec import EngineSpec
from shared_engine.settings import EngineSettings

POLL_S = 0.02
REPORT_S = 0.2
END_S = 20.0


@dataclass(frozen=True)
class DirectConnection(Connection):
    """A connection that knows its engine: after a fork, this process's is another one."""

    engine: DirectEngine = field(kw_only=True)


class DirectEndpoint(EngineEndpoint):
    """An engine under this process. Constructing one reads no file and opens nothing."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._policy = keep_policy(settings)
        self._spec: EngineSpec | None = None
        self._resolving = SharedTasks()

    @property
    def key(self) -> str:
        return "" if self._spec is None else self._spec.key

    def is_up(self) -> bool:
        return self._spec is not None and direct_engine(self._spec).state is EngineState.READY

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        self.leave_out(headers)
        if concurrent.futures.thread._shutdown:
            raise EngineError("no request can be made any more: the app ends, and vLLM in it can start no thread")
        engine = direct_engine(self._spec or await self._resolved())
        deadline = time.monotonic() + self._policy.start_timeout_s
        while True:
            step = engine.take(self._policy)
            if step is None:
                step = await in_a_thread(engine.start)
            if self._settings.verbose and engine.folder is not None:
                forward_log(engine.folder.log, called(engine.spec.model), self)
            if isinstance(step, Held):
                client = in_process_client(step.host)
                self.max_num_seqs = step.host.max_num_seqs or self.max_num_seqs
                return DirectConnection(client, engine.spec.model, step.start_number, engine=engine)
            async with self._shown(engine):
                await self._started(step, deadline)

    def release(self, connection: Connection) -> None:
        assert isinstance(connection, DirectConnection)
        connection.engine.give_back()

    async def _resolved(self) -> EngineSpec:
        """Look for vLLM here, read the model's files: in a thread, as disks can be slow."""

        async def resolve() -> EngineSpec:
            awake = self._settings.model_copy(update={"sleep_after_s": None})  # nobody here would wake it
            return await in_a_thread(lambda: engine_spec(awake, interpreter_here()))

        if self._spec is None:
            self._spec = await self._resolving.run("spec", resolve)
        return self._spec

    async def _started(self, step: Future[None], deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())) as limit:
                await _outcome_of(step)
        except EngineError as exc:
            raise type(exc)(*exc.args) from exc  # all who wait get it: each its own, with its own traceback
        except TimeoutError:
            if not limit.expired():
                raise
            limit_s = self._policy.start_timeout_s
            message = f"the engine was not ready within start_timeout_s = {limit_s:g} s; its start goes on"
            raise EngineStartTimeoutError(message) from None

    @contextlib.asynccontextmanager
    async def _shown(self, engine: DirectEngine) -> AsyncIterator[None]:
        """Meanwhile the progress of the start is shown."""
        # A bar would stand in the way of the lines.
        shows_bar = self._settings.show_progress and not self._settings.verbose
        reporter = StartReporter(engine.spec.model, shows_bar)
        watching = asyncio.create_task(_follow(engine, reporter))
        error: BaseException | None = None
        try:
            yield
        except BaseException as exc:
            error = exc
            raise
        finally:
            watching.cancel()
            reporter.close(error)

    async def death_of(self, connection: Connection) -> EngineDiedError | EngineStoppedError | None:
        assert isinstance(connection, DirectConnection)
        engine = connection.engine
        ending = engine.ending(connection.incarnation)
        if ending is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await _outcome_of(ending)
        return end_error(engine.outcome(connection.incarnation))

    async def status(self, *, processes: bool) -> EngineInfo:
        engine = direct_engine(await self._resolved())
        return await in_a_thread(lambda: engine.info(processes=True)) if processes else engine.info(processes=False)

    async def observer_client(self) -> Client | None:
        engine = direct_engine(await self._resolved())
        host = engine.host
        return None if host is None or engine.state is not EngineState.READY else in_process_client(host)

    async def evict(self, timeout: float) -> None:
        engine = direct_engine(await self._resolved())
        deadline = time.monotonic() + timeout
        while (ending := engine.begin_eviction()) is None:
            if time.monotonic() >= deadline:
                raise EngineBusyError(f"{engine.spec.model} can't be evicted: it is in use after {timeout:g} s")
            await asyncio.sleep(POLL_S)
        await _outcome_of(ending)

    async def shutdown(self, timeout: float, *, force: bool) -> None:
        engine = direct_engine(await self._resolved())
        ending = await in_a_thread(engine.kill) if force else None  # it waits for processes to be gone
        if ending is None:
            await self.evict(timeout)
        else:
            await _outcome_of(ending)

    async def close(self) -> None:
        folder = None if self._spec is None else direct_engine(self._spec).folder
        if self._settings.verbose and folder is not None:
            await in_a_thread(lambda: stop_forwarding(folder.log, self))


async def _outcome_of(future: Future[None]) -> None:
    """Of a future that some other thread resolves. Cancelling the caller leaves it as it is."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def resolve() -> None:
        if not done.done():
            error = future.exception()
            done.set_result(None) if error is None else done.set_exception(error)

    def tell(_: Future[None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(resolve)

    future.add_done_callback(tell)
    await done


async def _follow(engine: DirectEngine, reporter: StartReporter) -> None:
    while True:
        host = engine.host
        if host is not None and host.progress is not None:
            reporter.report(host.progress)
        await asyncio.sleep(REPORT_S)
