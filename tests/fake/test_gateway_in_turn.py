"""Several models on a device that holds one at a time, on the fake vLLM and real supervisors: nobody is kept out."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO
from tests.support.gateways import CHAT, Gateway, chat, entry
from tests.support.waiting import wait_until

Serve = Callable[..., Any]


@contextmanager
def busy(gate: Gateway, model: str, clients: int = 4) -> Iterator[list[float]]:
    """Meanwhile the model is asked without a pause; how long each answer took. All must be answered."""
    took: list[float] = []
    wrong: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        with gate.client() as client:
            while not ended.is_set():
                began = time.monotonic()
                answer = client.post(CHAT, json=chat(model))
                took.append(time.monotonic() - began)
                if answer.status_code != 200:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not wrong


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def number(client: httpx.Client, name: str, model: str) -> float:
    found = re.search(rf'^{name}{{model="{model}"[^}}]*}} (\S+)', client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_three_busy_models_of_which_one_fits_are_all_served(fake_engine: MakeEngine, serve: Serve) -> None:
    models = {name: entry(fake_engine({"token_delay_s": 0.01}, max_loaded_engines=1)) for name in "abc"}
    with serve(models, turn_s=0.3) as gate, gate.client() as client:
        with busy(gate, "a") as a, busy(gate, "b") as b, busy(gate, "c") as c:
            began = time.monotonic()
            while time.monotonic() - began < 60 and min(map(len, (a, b, c))) < 12:
                time.sleep(0.1)
        assert min(map(len, (a, b, c))) >= 12
        assert max(*a, *b, *c) < 25
        assert all(number(client, "vllm_local_gateway_turns_given_total", name) >= 1 for name in "ab")
        assert number(client, "vllm_local_gateway_longest_wait_seconds", "a") == 0


def test_a_model_waits_for_a_busy_one_no_longer_than_its_turn_and_a_pinned_one_stays(
    fake_engine: MakeEngine, serve: Serve
) -> None:
    one, two = fake_engine({"token_delay_s": 0.01}, max_loaded_engines=1), fake_engine(max_loaded_engines=1)
    with serve({"one": entry(one), "two": entry(two)}, turn_s=0.2) as gate, gate.client() as client:
        with busy(gate, "one"):
            assert text_of(client.post(CHAT, json=chat("two"))) == ANSWER
        client.post("/api/v1/inference/pin", json={"model": "one"})
        assert text_of(client.post(CHAT, json=chat("one"))) == ANSWER
        with busy(gate, "one", clients=1), ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.post, CHAT, json=chat("two"))
            wait_until(lambda: "is pinned" in str(two.status().progress), 10, "two to wait for room")
            time.sleep(1.0)
            assert one.is_ready()
            client.post("/api/v1/inference/unpin", json={"model": "one"})
            assert text_of(waiting.result()) == ANSWER


def test_a_model_that_another_program_keeps_busy_is_served_on_and_another_one_leaves(
    fake_engine: MakeEngine, serve: Serve
) -> None:
    held, free = (fake_engine({"token_delay_s": 0.02}, max_loaded_engines=2) for _ in range(2))
    models = {"held": entry(held), "free": entry(free), "other": entry(fake_engine(max_loaded_engines=2))}
    stream = held.stream_chat(HELLO, extra_body={"ignore_eos": True}, max_tokens=2000)
    next(stream)  # of this process, by the engine's own socket
    with serve(models, turn_s=0.2) as gate, gate.client() as client:
        with busy(gate, "held", clients=1) as answered, busy(gate, "free"):
            wait_until(free.is_ready, 10, "both to be loaded")
            assert text_of(client.post(CHAT, json=chat("other"))) == ANSWER
            before = len(answered)
            wait_until(lambda: len(answered) > before + 2, 20, "the one that stays to be served")
        assert held.status().starts == 1
        stream.close()
