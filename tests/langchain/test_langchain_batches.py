"""Batches keep the engine full, and each input its own config and error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig

from langchain_vllm_local import VLLM, ChatVLLM

COUNT = 24


class InFlight(BaseCallbackHandler):
    """Counts what runs at once, and what has ended."""

    def __init__(self) -> None:
        self.now = self.most = self.ended = 0
        self._guard = threading.Lock()

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.on_llm_start()

    def on_llm_start(self, *_: Any, **__: Any) -> None:
        with self._guard:
            self.now += 1
            self.most = max(self.most, self.now)

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        with self._guard:
            self.now -= 1
            self.ended += 1


def as_batch(llm: Any, inputs: list[str], config: RunnableConfig) -> list[Any]:
    return list(llm.batch(inputs, config))


def as_completed(llm: Any, inputs: list[str], config: RunnableConfig) -> list[Any]:
    return [value for _, value in sorted(llm.batch_as_completed(inputs, config), key=lambda pair: pair[0])]


def as_tqdm(llm: Any, inputs: list[str], config: RunnableConfig) -> list[Any]:
    return list(llm.batch(inputs, config, use_tqdm=True))


@pytest.fixture(params=[ChatVLLM, VLLM])
def llm(request: pytest.FixtureRequest, tiny_chat: dict[str, Any]) -> Any:
    return request.param(**tiny_chat, temperature=0.0, max_tokens=16, extra_body={"ignore_eos": True})


class AllAtOnce(BaseCallbackHandler):
    """Lets none go on before all have begun."""

    raise_error = True

    def __init__(self) -> None:
        self._barrier = threading.Barrier(COUNT, timeout=30)

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self._barrier.wait()

    def on_llm_start(self, *_: Any, **__: Any) -> None:
        self._barrier.wait()


@pytest.mark.parametrize("way", [as_batch, as_completed, as_tqdm])
def test_more_are_in_flight_than_core_has_threads(llm: Any, way: Callable[..., list[Any]]) -> None:
    if isinstance(llm, VLLM) and way is as_batch:  # one call of the engine for all, whose starts are told in a row
        assert len(way(llm, ["Hello"] * COUNT, {})) == COUNT
    else:
        assert len(way(llm, ["Hello"] * COUNT, {"callbacks": [AllAtOnce()]})) == COUNT


@pytest.mark.parametrize("way", [as_batch, as_completed, as_tqdm])
def test_a_callback_may_ask_the_model_itself(llm: Any, way: Callable[..., list[Any]]) -> None:
    class Asks(AsyncCallbackHandler):
        """The worst that an app may do: it blocks a loop with a call of its own."""

        raise_error = True

        async def on_llm_end(self, *_: Any, **__: Any) -> None:
            assert llm.invoke("Hello")

    assert len(way(llm, ["Hello"] * 3, {"callbacks": [Asks()]})) == 3


@pytest.mark.parametrize("way", [as_batch, as_completed, as_tqdm])
def test_max_concurrency_is_honoured(llm: Any, way: Callable[..., list[Any]]) -> None:
    watch = InFlight()
    way(llm, ["Hello"] * COUNT, {"callbacks": [watch], "max_concurrency": 3})
    assert watch.ended == COUNT
    assert watch.most <= 3


async def test_asynchronous_batches_too(llm: Any) -> None:
    for limit, most in ((None, COUNT), (3, 3)):
        for use_tqdm in (False, True):
            watch = InFlight()
            config = RunnableConfig(callbacks=[watch])
            if limit is not None:
                config["max_concurrency"] = limit
            assert len(await llm.abatch(["Hello"] * COUNT, config, use_tqdm=use_tqdm)) == COUNT
            assert watch.ended == COUNT
            assert watch.most <= most
        found = [index async for index, _ in llm.abatch_as_completed(["Hello"] * COUNT, config)]
        assert sorted(found) == list(range(COUNT))


def test_a_progress_bar_counts_every_input(llm: Any, capfd: pytest.CaptureFixture[str]) -> None:
    llm.batch(["Hello"] * 5, use_tqdm=True)
    assert "5/5" in capfd.readouterr().err
    llm.batch(["Hello"] * 5)
    assert capfd.readouterr().err == ""


def test_generate_asks_all_at_once_and_keeps_their_order(tiny_chat: dict[str, Any]) -> None:
    llm = ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=16)
    conversations: list[list[BaseMessage]] = [[HumanMessage(f"What is {n} + 1?")] for n in range(COUNT)]
    result = llm.generate(conversations, callbacks=[AllAtOnce()])
    one_by_one = [llm.generate([each]).generations[0][0].text for each in conversations[:4]]
    assert [generations[0].text for generations in result.generations[:4]] == one_by_one
    assert len(result.run or ()) == COUNT


def test_an_error_in_generate_spoils_none_of_the_others(tiny_chat: dict[str, Any]) -> None:
    llm = ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=16)
    watch = InFlight()
    too_long: list[BaseMessage] = [HumanMessage("word " * 5000)]
    with pytest.raises(Exception, match="limit is 2048"):
        llm.generate([[HumanMessage("Hello")], too_long, [HumanMessage("Hello")]], callbacks=[watch])
    assert watch.ended == 2


def test_a_result_names_the_usage_of_each(tiny_chat: dict[str, Any]) -> None:
    llm = ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=16)
    result: LLMResult = llm.generate([[HumanMessage("Hello")]] * 3)
    usages = [generations[0].message.usage_metadata for generations in result.generations]
    assert len({str(usage) for usage in usages}) == 1 and usages[0]
