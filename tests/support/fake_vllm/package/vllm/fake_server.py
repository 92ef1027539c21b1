"""The fake's HTTP/1.1 server: answers as vLLM 0.32 does, always the same text."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import urlsplit

from vllm.fake_faults import Faults
from vllm.fake_memory import Memory

TOKENS = ("Hello", "!", " How", " can", " I", " help", " you", " today", "?")
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
DEFAULT_COMPLETION_TOKENS = 16
POLL_S = 0.005


class FakeServer:
    """Answers connections. ``running`` and its like are what /metrics shows."""

    def __init__(self, args: argparse.Namespace, faults: Faults, memory: Memory) -> None:
        self._model: str = args.model
        self._max_model_len: int = args.max_model_len
        self._can_sleep = args.enable_sleep_mode and os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
        self._seed: int | None = args.seed
        self._faults = faults
        self._memory = memory
        self._requests = self._iterations = self._generated = self._waiting = 0
        self._is_sleeping = False
        self._adapters: set[str] = set()
        self.running = 0
        self.is_stopping = False

    async def answer_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # It ends by hanging up, or with the server.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                method, target, body, is_last = await read_request(reader)
                await self._answer(method, urlsplit(target).path, body, reader, writer)
                await writer.drain()
                if is_last:
                    break
        writer.close()

    async def _answer(
        self, method: str, path: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if (method, path) in (("POST", CHAT), ("POST", COMPLETIONS)):
            return await self._generate(path, body, reader, writer)
        if (method, path) == ("GET", "/metrics"):
            return send(writer, 200, self._metrics().encode(), "text/plain; version=1.0.0; charset=utf-8")
        if (method, path) == ("GET", "/health"):
            return send(writer, 200, b"")
        if (method, path) == ("GET", "/v1/models"):
            model = {"id": self._model, "object": "model", "max_model_len": self._max_model_len}
            return send_json(writer, {"object": "list", "data": [model]})
        if (method, path) == ("POST", "/tokenize"):
            count = count_tokens(body)
            answer = {"count": count, "max_model_len": self._max_model_len, "tokens": list(range(count))}
            return send_json(writer, answer)
        if (method, path) in (("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter")):
            return self._load_or_unload(path, body["lora_name"], writer)
        if self._can_sleep and (method, path) in (("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")):
            return await self._sleep_or_wake(path, writer)
        send_json(writer, {"detail": "Not Found"}, 404)

    # ---- adapters

    def _load_or_unload(self, path: str, name: str, writer: asyncio.StreamWriter) -> None:
        is_load = path == "/v1/load_lora_adapter"
        if not is_load and name not in self._adapters:
            return send_error(writer, 404, f"The lora adapter '{name}' cannot be found.")
        (self._adapters.add if is_load else self._adapters.remove)(name)
        self._faults.note("loaded" if is_load else "unloaded", self._seed)
        send(writer, 200, f"Success: LoRA adapter '{name}' added or removed successfully.".encode(), "text/plain")

    # ---- sleep

    async def _sleep_or_wake(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/sleep":
            await asyncio.sleep(self._faults.slow_sleep_s)
            if self._faults.fail_sleep:
                return send_error(writer, 500, "the fake was told to fail at sleep")
            self._memory.free()
            self._is_sleeping = True
            self._faults.note("asleep", self._seed)
            return send_json(writer, {"status": "sleeping", "level": 1})
        if path == "/wake_up":
            await asyncio.sleep(self._faults.slow_wake_s)
            if self._faults.fail_wake or not self._memory.try_take():
                return send_error(writer, 500, "CUDA Error: out of memory at cumem_allocator.cpp")
            self._is_sleeping = False
            self._faults.note("awake", self._seed)
            return send_json(writer, {"status": "awake", "tags": None})
        send_json(writer, {"is_sleeping": self._is_sleeping})

    # ---- generation

    async def _generate(
        self, path: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._requests += 1
        if self._requests <= self._faults.storm_503:
            return send_error(writer, 503, "The server is overloaded: too many queued requests.")
        if body.get("model") not in (self._model, None, *self._adapters):
            return send_error(writer, 404, f"The model `{body['model']}` does not exist.")
        answer = Answer(path, body.get("model") or self._model, f"{self._requests:08x}", count_tokens(body))
        wanted = body.get("max_tokens") or (self._max_model_len if path == CHAT else DEFAULT_COMPLETION_TOKENS)
        is_stream = bool(body.get("stream"))
        async with contextlib.aclosing(self._tokens(wanted, bool(body.get("ignore_eos")), reader)) as tokens:
            async for text, reason in tokens:
                if is_stream and not answer.texts:
                    begin_stream(writer)
                answer.add(text, reason)
                if is_stream:
                    send_event(writer, answer.chunk(text, reason))
                    await writer.drain()
        if not is_stream:
            return send_json(writer, answer.whole())
        if (body.get("stream_options") or {}).get("include_usage"):
            send_event(writer, answer.usage_chunk())
        end_stream(writer)

    async def _tokens(
        self, wanted: int, ignore_eos: bool, reader: asyncio.StreamReader
    ) -> AsyncGenerator[tuple[str, str | None], None]:
        """Each token, the last one with the finish reason. A client that hangs up aborts its request."""
        await self._until_its_turn(reader)
        count = wanted if ignore_eos else min(wanted, len(TOKENS))
        last_reason = "stop" if wanted > count or (wanted == len(TOKENS) and not ignore_eos) else "length"
        self.running += 1
        try:
            for index in range(count):
                if index == self._faults.exit_after_tokens:
                    self._faults.reach("request")
                if self._faults.hang_mid_generation and index == self._faults.hang_after_tokens:
                    self._faults.burn()
                    await until(lambda: self.is_stopping, reader)
                await asyncio.sleep(self._faults.token_delay_s)
                if reader.at_eof():
                    return
                if self.is_stopping:
                    yield "", "abort"
                    return
                self._iterations += 1
                self._generated += 1
                yield TOKENS[index % len(TOKENS)], last_reason if index == count - 1 else None
        finally:
            self.running -= 1

    async def _until_its_turn(self, reader: asyncio.StreamReader) -> None:
        most = self._faults.queues_above
        self._waiting += 1
        try:
            await until(lambda: not self._is_sleeping and (most is None or self.running < most), reader)
        finally:
            self._waiting -= 1

    # ---- metrics

    def _metrics(self) -> str:
        steps = self._iterations
        return "".join(
            (
                self._metric("num_requests_running", "gauge", {"": self.running}),
                self._metric("num_requests_waiting", "gauge", {"": self._waiting}),
                self._metric("generation_tokens_total", "counter", {"": self._generated}),
                self._metric("iteration_tokens_total", "histogram", {"_count": steps, "_sum": self._generated}),
            )
        )

    def _metric(self, name: str, kind: str, values: dict[str, int]) -> str:
        labels = f'{{engine="0",model_name="{self._model}"}}'
        head = f"# HELP vllm:{name} The fake's.\n# TYPE vllm:{name} {kind}\n"
        return head + "".join(f"vllm:{name}{end}{labels} {float(value)}\n" for end, value in values.items())


class Answer:
    """One answer in OpenAI's JSON, whole or in chunks."""

    def __init__(self, path: str, model: str, number: str, prompt_tokens: int) -> None:
        self._is_chat = path == CHAT
        kind = "chat.completion" if self._is_chat else "text_completion"
        self._kind = kind
        self._head = {"id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{number}", "created": 0, "model": model}
        self._prompt_tokens = prompt_tokens
        self._reason: str | None = None
        self.texts: list[str] = []

    def add(self, text: str, reason: str | None) -> None:
        self.texts.append(text)
        self._reason = reason

    def chunk(self, text: str, reason: str | None) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": {"content": text}} if self._is_chat else {"text": text}
        return self._chunk([{"index": 0, **content, "logprobs": None, "finish_reason": reason}])

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._chunk([]), "usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        text = "".join(self.texts)
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": self._reason, "stop_reason": None}
        return {**self._head, "object": self._kind, "choices": [choice], "usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self._kind + (".chunk" if self._is_chat else ""), "choices": choices}

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self._prompt_tokens, len(self.texts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


# ---- HTTP


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, Any], bool]:
    """Method, target and JSON body of the next request; True if it is the connection's last.

    Raises:
        asyncio.IncompleteReadError: the client has hung up.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return method, target, json.loads(body or b"{}"), headers.get("connection") == "close"


async def until(condition: Callable[[], bool], reader: asyncio.StreamReader) -> None:
    """Wait for it, or for the client to hang up."""
    while not condition() and not reader.at_eof():
        await asyncio.sleep(POLL_S)


def count_tokens(body: dict[str, Any]) -> int:
    """The words of the prompt, or of the messages."""
    if isinstance(body.get("prompt"), list):
        return len(body["prompt"])
    texts = [body["prompt"]] if "prompt" in body else [str(message["content"]) for message in body["messages"]]
    return sum(len(text.split()) for text in texts)


def send(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def send_json(writer: asyncio.StreamWriter, answer: dict[str, Any], status: int = 200) -> None:
    send(writer, status, json.dumps(answer).encode())


def send_error(writer: asyncio.StreamWriter, status: int, message: str) -> None:
    error = {"message": message, "type": "InternalServerError", "param": None, "code": status}
    send_json(writer, {"error": error}, status)


def begin_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")


def send_event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    send_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def end_stream(writer: asyncio.StreamWriter) -> None:
    send_chunk(writer, b"data: [DONE]\n\n")
    send_chunk(writer, b"")


def send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
