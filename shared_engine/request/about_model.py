"""What a remote server, or the hub, says of a model when it is asked before the first request.

Asked once for all objects of the process: frameworks make, copy and drop objects with every call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Coroutine, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from shared_engine.errors import VLLMError
from shared_engine.launch.fetching import fetch_config, is_offline
from shared_engine.machine.home import expanded
from shared_engine.model_files.folder import inputs_in, window_in
from shared_engine.request.answers import parse_models, window_of
from shared_engine.request.endpoint import PROBE_TIMEOUT_S, Endpoint
from shared_engine.request.io_loop import io_loop
from shared_engine.request.routes import MODELS
from shared_engine.request.threads import in_a_thread
from shared_engine.settings import EngineSettings

SERVER_WAIT_S = 3.0
HUB_WAIT_S = 8.0
"""For a Python to start and import huggingface_hub, and for two requests to the hub."""
KEPT_S = 60.0
"""An answer, or that there was none, until it is asked for again."""
MAX_KEPT = 1000
MODELSCOPE_VARIABLE = "VLLM_USE_MODELSCOPE"
"""With it vLLM takes models from another hub."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_log = logging.getLogger(__name__)


class AboutModel(NamedTuple):
    """What is known of a model; None for what is not.

    Attributes:
        context_window: tokens of prompt and answer together.
        inputs: what it takes beside text: some of ``image``, ``audio``, ``video``.
    """

    context_window: int | None = None
    inputs: frozenset[str] | None = None


class _Question:
    def __init__(self, asking: Coroutine[Any, Any, AboutModel]) -> None:
        self.asked_at = time.monotonic()
        try:
            loop = io_loop()
        except VLLMError:  # the app ends
            asking.close()
            self.answer: Future[AboutModel] = Future()
            self.answer.set_result(AboutModel())
        else:
            self.answer = asyncio.run_coroutine_threadsafe(asking, loop)

    @property
    def is_over(self) -> bool:
        return self.answer.done() and time.monotonic() - self.asked_at > KEPT_S

    def wait(self, limit_s: float) -> AboutModel:
        """Until it is so old: who looks after that waits no more."""
        left_s = self.asked_at + limit_s - time.monotonic()
        if _runs_on_io_loop():  # which would have to answer
            left_s = 0.0
        try:
            return self.answer.result(max(0.0, left_s))
        except TimeoutError:
            return AboutModel()


_questions: dict[Hashable, _Question] = {}
_guard = threading.Lock()


def ask_servers(endpoint: Endpoint, settings: EngineSettings) -> AboutModel:
    """What the server says, or all of a fleet's.

    Waits for ``SERVER_WAIT_S`` at most. What comes later, a later call has.
    """
    return _ask(_key(settings), _of_servers(endpoint, settings), SERVER_WAIT_S)


def ask_hub(settings: EngineSettings) -> AboutModel:
    """What the config says of a model that was not downloaded yet. Waits for ``HUB_WAIT_S`` at most."""
    model = settings.model or ""
    is_there = _HUB_ID.fullmatch(model) and not os.path.exists(expanded(model))
    if not is_there or is_offline() or MODELSCOPE_VARIABLE in os.environ:
        return AboutModel()
    return _ask(_key(settings), _of_hub(settings), HUB_WAIT_S)


def _ask(key: Hashable, asking: Coroutine[Any, Any, AboutModel], wait_s: float) -> AboutModel:
    with _guard:
        question = _questions.get(key)
        if question is None or question.is_over:
            while len(_questions) >= MAX_KEPT:
                del _questions[next(iter(_questions))]
            question = _questions[key] = _Question(asking)
        else:
            asking.close()
    return question.wait(wait_s)


def _key(settings: EngineSettings) -> Hashable:
    """What decides the answer: who is asked for what, and as whom."""
    headers = tuple((settings.default_headers or {}).items())
    return settings.base_url, settings.model, settings.revision, settings.api_key, settings.basic_auth, headers


def _runs_on_io_loop() -> bool:
    try:
        return asyncio.get_running_loop() is io_loop()
    except (RuntimeError, VLLMError):
        return False


async def _of_servers(endpoint: Endpoint, settings: EngineSettings) -> AboutModel:
    try:
        clients = await endpoint.observer_clients()
        asked = [client.request("GET", MODELS, timeout=PROBE_TIMEOUT_S) for client in clients]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        windows = [window_of(parse_models(answer), settings.model) for answer in answers if isinstance(answer, bytes)]
    except VLLMError as exc:
        failures, windows = [exc], []
    for failure in failures:
        _log.info("%s was not to be asked for its models: %s", settings.base_url, failure)
    return AboutModel(context_window=min(filter(None, windows), default=None))  # of a fleet, what all of them take


async def _of_hub(settings: EngineSettings) -> AboutModel:
    try:
        config = await in_a_thread(partial(fetch_config, settings))
    except (VLLMError, OSError, ValueError) as exc:
        _log.info("the config of %s was not to be had before it is downloaded: %s", settings.model, exc)
        return AboutModel()
    return AboutModel(window_in(config), inputs_in(config))


def _forget_in_child() -> None:
    """A forked child has no loop that would answer what its parent has asked."""
    global _guard
    _guard = threading.Lock()
    for key in [key for key, question in _questions.items() if not question.answer.done()]:
        del _questions[key]


os.register_at_fork(after_in_child=_forget_in_child)
