"""A model that comes from the hub, slowly: what callers are told, and what becomes of the start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineStartTimeoutError
from tests.real.conftest import MakeEngine
from tests.support.hub import hub
from tests.support.paths import TINY_CHAT
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
MODEL = "maintainers/tiny_chat"


@pytest.fixture
def downloading(
    own_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Engine]]:
    """An engine whose model comes from a hub that is as ``kwargs`` of ``hub`` say."""
    with ExitStack() as hubs:

        def make(settings: dict[str, Any], **kwargs: Any) -> Engine:
            monkeypatch.setenv("HF_ENDPOINT", hubs.enter_context(hub(Path(TINY_CHAT), MODEL, **kwargs)))
            monkeypatch.setenv("HF_HUB_OFFLINE", "0")
            monkeypatch.setenv("HF_HOME", str(tmp_path))
            return own_engine(model=MODEL, **settings)

        yield make


@pytest.mark.long
def test_a_download_goes_on_when_a_caller_waits_no_longer(downloading: Callable[..., Engine]) -> None:
    engine = downloading({"start_timeout_s": 2, "stall_timeout_s": 15}, bytes_per_s=1_000_000)

    def is_told_of_the_download() -> bool:
        with pytest.raises(EngineStartTimeoutError, match="the start goes on") as caught:
            engine.chat(HELLO)
        return re.search(r"fetching the model's files \(\d\.\d of \d\.\d MB\)", caught.value.message) is not None

    wait_until(is_told_of_the_download, 90, "the download")
    wait_until(engine.is_ready, 90, "the start to go on to its end")
    assert engine.chat(HELLO, max_tokens=8).text
    assert engine.status().starts == 1


@pytest.mark.long
def test_a_download_that_stands_still_is_ended(downloading: Callable[..., Engine]) -> None:
    engine = downloading({"stall_timeout_s": 5}, stands_still=True)
    with pytest.raises(EngineStartTimeoutError, match=r"the start hangs.*fetching the model's files"):
        engine.chat(HELLO)
