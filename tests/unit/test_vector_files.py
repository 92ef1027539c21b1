"""Vectors of many texts in a file that a later process goes on with, whatever ended the one before; against a real HTTP
server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from langchain_vllm_local import VLLMEmbeddings
from llama_index_vllm_local import VLLMEmbedding
from shared_engine import ContextLengthError, Engine, InvalidInputError, RequestRejectedError, VLLMError
from shared_engine.answer_file.vectors import VectorFile
from shared_engine.model_files.weights import has_weights
from shared_engine.results import EmbeddingResult, TokenUsage
from tests.support.choosy_server import LONG, REFUSED, is_choosy, refused, vector_of
from tests.support.hub import hub_model
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, running_server
from tests.support.waiting import wait_until

TEXTS = ["x" * (position % 97 + 1) for position in range(500)]
VECTORS = [vector_of(text) for text in TEXTS]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def asked_for(asked: list[Sequence[str]]) -> int:
    return sum(map(len, asked))


@pytest.mark.slow
def test_the_vectors_are_those_of_embed_and_are_asked_for_once(server: RemoteServer, tmp_path: Path) -> None:
    asked = is_choosy(server)
    engine = Engine(base_url=server.url, model="served")
    done: list[int] = []
    file = engine.embed_file(TEXTS, tmp_path / "vectors", on_progress=done.append)
    assert (list(file), len(file), sum(done), asked_for(asked)) == (VECTORS, 500, 500, 500)
    assert (file[0], file[-1], file[10:12]) == (VECTORS[0], VECTORS[-1], VECTORS[10:12])
    assert stat.S_IMODE((tmp_path / "vectors").stat().st_mode) == 0o600
    again = Engine(base_url=server.url, model="served").embed_file(TEXTS, tmp_path / "vectors")
    assert (list(again), asked_for(asked)) == (VECTORS, 500)
    assert list(VectorFile(tmp_path / "vectors")) == VECTORS
    more = engine.embed_file([*TEXTS, "abc"], tmp_path / "vectors")
    assert (more[500], asked_for(asked)) == (vector_of("abc"), 501)


def test_a_job_that_fails_keeps_what_was_answered(server: RemoteServer, tmp_path: Path) -> None:
    asked = is_choosy(server)
    answer, left = server.handler, [3]

    async def fails(request: web.Request) -> web.StreamResponse:
        left[0] -= 1
        return await answer(request) if left[0] >= 0 else refused(401, "no key")

    server.handler = fails
    engine = Engine(base_url=server.url, model="served")
    with pytest.raises(VLLMError, match="no key"):
        engine.embed_file(TEXTS, tmp_path / "vectors")
    server.handler = answer
    before = asked_for(asked)
    assert 0 < before < 500
    assert list(engine.embed_file(TEXTS, tmp_path / "vectors")) == VECTORS
    assert asked_for(asked) == 500


def test_texts_that_fail_have_their_error_in_the_file(server: RemoteServer, tmp_path: Path) -> None:
    asked = is_choosy(server)
    texts: list[Any] = [*TEXTS[:100], LONG, 5, REFUSED, "abc"]
    engine = Engine(base_url=server.url, model="served")
    for _ in range(2):
        file = engine.embed_file(texts, tmp_path / "vectors")
        assert list(file) == [*VECTORS[:100], None, None, None, vector_of("abc")]
        assert [failure.index for failure in file.failures] == [100, 101, 102]
        kinds = [type(failure.error) for failure in file.failures]
        assert kinds == [ContextLengthError, InvalidInputError, RequestRejectedError]
        assert file.indices == [*range(100), 103]
        said = asked_for(asked)
        asked.clear()
    assert said == 0
    is_choosy(server, lambda _: None)
    again = engine.embed_file(texts, tmp_path / "vectors", retry_errors=True)
    assert [failure.index for failure in again.failures] == [101]


def test_the_first_that_fails_may_end_the_others(server: RemoteServer, tmp_path: Path) -> None:
    is_choosy(server)
    engine = Engine(base_url=server.url, model="served")
    texts = [*TEXTS[:10], LONG, *TEXTS[11:20]]
    with pytest.raises(ContextLengthError, match=r"texts\[10\]: the text has 22 tokens"):
        engine.embed_file(texts, tmp_path / "vectors", on_error="raise")
    assert VectorFile(tmp_path / "vectors").indices == [*range(10), *range(11, 20)]
    with pytest.raises(InvalidInputError, match=r"texts\[1\] must be a string"):
        engine.embed_file(["a", 5], tmp_path / "other", on_error="raise")  # type: ignore[list-item]
    assert not (tmp_path / "other").exists()


INDEXED = {
    "model.safetensors.index.json": '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}',
    "1.safetensors": "1",
}


def model_in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    return folder


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "model": lambda settings, _: settings.update(model="other"),
    "dtype": lambda settings, _: settings.update(dtype="float16"),
    "pooler": lambda settings, _: settings.update(engine_args={"pooler_config": {"pooling_type": "MEAN"}}),
    "dimensions": lambda _, options: options.update(dimensions=1),
    "prefix": lambda _, options: options.update(prefix="passage: "),
    "body": lambda _, options: options.update(extra_body={"use_activation": False}),
    "cut": lambda _, options: options.update(truncate_prompt_tokens=-1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_setting_or_option_is_noticed(server: RemoteServer, tmp_path: Path, change: str) -> None:
    asked = is_choosy(server)
    settings: dict[str, Any] = {"base_url": server.url, "model": "served"}
    options: dict[str, Any] = {}
    Engine(**settings).embed_file(TEXTS[:10], tmp_path / "vectors")
    before = (tmp_path / "vectors").read_bytes()
    CHANGES[change](settings, options)
    with pytest.raises(VLLMError, match="was written with another model or other parameters: choose another"):
        Engine(**settings).embed_file(TEXTS[:10], tmp_path / "vectors", **options)
    assert ((tmp_path / "vectors").read_bytes(), asked_for(asked)) == (before, 10)


def test_what_has_no_say_in_vectors_may_change(server: RemoteServer, tmp_path: Path) -> None:
    asked = is_choosy(server)
    Engine(base_url=server.url, model="served").embed_file(TEXTS[:10], tmp_path / "vectors")
    with running_server() as other:
        others = is_choosy(other)
        engine = Engine(base_url=other.url, model="served", max_retries=7, engine_args={"max_num_seqs": 8})
        assert list(engine.embed_file(TEXTS[:20], tmp_path / "vectors", batch_size=3)) == VECTORS[:20]
        assert (asked_for(asked), asked_for(others)) == (10, 10)


def test_a_model_of_other_files_is_noticed(tmp_path: Path) -> None:
    from shared_engine import EngineSettings
    from shared_engine.request.vector_files import how_of

    folder = model_in(tmp_path / "model")
    settings = EngineSettings(model=str(folder))
    before = how_of(settings, str(folder), {})
    assert how_of(EngineSettings(model=str(folder)), str(folder), {}) == before
    (folder / "model.safetensors").write_bytes(b"22")
    assert how_of(settings, str(folder), {}) != before


@pytest.mark.parametrize("in_part", [{}, {"config.json": "{}"}, INDEXED], ids=["nothing", "config", "one of two"])
def test_a_model_that_is_not_all_here_is_fetched_before_its_files_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_part: dict[str, str]
) -> None:
    snapshot = hub_model(tmp_path, monkeypatch)
    whole = {"config.json": "{}", "model.safetensors": "1"} | (
        INDEXED | {"2.safetensors": "2"} if in_part is INDEXED else {}
    )
    for name, text in in_part.items():
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(text)
    started = []

    async def downloads(engine: Engine) -> None:
        started.append(engine)
        snapshot.mkdir(parents=True, exist_ok=True)
        for name, text in whole.items():
            (snapshot / name).write_text(text)

    async def vectors(_: Engine, texts: list[str], **__: Any) -> EmbeddingResult:
        return EmbeddingResult(embeddings=[vector_of(text) for text in texts], usage=TokenUsage(), model="m")

    monkeypatch.setattr(Engine, "awarmup", downloads)
    monkeypatch.setattr(Engine, "aembed", vectors)
    for count in (10, 20):
        file = Engine(model="org/name").embed_file(TEXTS[:count], tmp_path / "vectors")
        assert list(file) == VECTORS[:count]
    assert len(started) == 1, "what is here needs no engine to go on"


ONE_OF_TWO_FORMS = {
    "pytorch_model.bin.index.json": '{"weight_map": {"a": "1.bin", "b": "2.bin"}}',
    **INDEXED,
    "2.safetensors": "2",
}
MISTRALS_FORM = {"model.safetensors.index.json": '{"weight_map": {"a": "model-1"}}', "consolidated.safetensors": "1"}


@pytest.mark.parametrize("files", [ONE_OF_TWO_FORMS, MISTRALS_FORM], ids=["one of two forms", "consolidated"])
def test_a_model_is_whole_in_one_form(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        assert not has_weights(tmp_path)
        (tmp_path / name).write_text(text)
    assert has_weights(tmp_path) is True


def test_what_was_left_of_training_is_no_models_weights(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_text("1")
    assert not has_weights(tmp_path)


@pytest.mark.slow
def test_the_file_is_free_when_progress_has_raised(server: RemoteServer, tmp_path: Path) -> None:
    is_choosy(server)
    engine = Engine(base_url=server.url, model="served")
    with pytest.raises(ZeroDivisionError):
        engine.embed_file(TEXTS, tmp_path / "vectors", batch_size=1, on_progress=lambda count: count // 0)
    assert list(engine.embed_file(TEXTS, tmp_path / "vectors")) == VECTORS


@pytest.mark.parametrize("name", ["model.gguf", "folder"])
async def test_a_model_that_is_no_hubs_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def starts(_: Engine) -> None:
        raise AssertionError

    monkeypatch.setattr(Engine, "awarmup", starts)
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "config.json").write_text("{}")
    else:
        path.write_text("1")
    await Engine(model=str(path))._afetched()


def test_a_text_that_has_changed_is_named(server: RemoteServer, tmp_path: Path) -> None:
    asked = is_choosy(server)
    engine = Engine(base_url=server.url, model="served")
    engine.embed_file(TEXTS[:10], tmp_path / "vectors")
    for texts in ([*TEXTS[:4], "new", *TEXTS[5:10]], TEXTS[:4]):
        with pytest.raises(VLLMError, match="has an answer to text 5, which is not in the input, or has changed"):
            engine.embed_file(texts, tmp_path / "vectors")
    assert asked_for(asked) == 10


def test_a_file_that_is_something_else_is_left_alone(server: RemoteServer, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("my notes\n")
    with pytest.raises(VLLMError, match="was not written by this command: see its line 1"):
        Engine(base_url=server.url, model="served").embed_file(TEXTS[:10], tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "my notes\n"
    with pytest.raises(InvalidInputError, match="not a file of vectors: see its line 1"):
        VectorFile(tmp_path / "notes")
    with pytest.raises(InvalidInputError, match="can't be read"):
        VectorFile(tmp_path / "nothing")


# ---- both adapters


async def langchain_sync(url: str, texts: list[Any], **more: Any) -> Any:
    return await asyncio.to_thread(VLLMEmbeddings(base_url=url, model="served").embed_documents, texts, **more)


async def langchain_async(url: str, texts: list[Any], **more: Any) -> Any:
    return await VLLMEmbeddings(base_url=url, model="served").aembed_documents(texts, **more)


async def llama_index_sync(url: str, texts: list[Any], **more: Any) -> Any:
    embed_model = VLLMEmbedding(base_url=url, model="served", embed_batch_size=7)
    return await asyncio.to_thread(embed_model.get_text_embedding_batch, texts, **more)


async def llama_index_async(url: str, texts: list[Any], **more: Any) -> Any:
    return await VLLMEmbedding(base_url=url, model="served").aget_text_embedding_batch(texts, **more)


@pytest.mark.parametrize("way", [langchain_sync, langchain_async, llama_index_sync, llama_index_async])
async def test_both_adapters_go_on_from_a_checkpoint(
    server: RemoteServer, tmp_path: Path, way: Callable[..., Awaitable[Any]]
) -> None:
    asked = is_choosy(server)
    texts = [*TEXTS[:20], LONG, "abc", "abc"]
    expected = [*VECTORS[:20], None, vector_of("abc"), vector_of("abc")]
    with pytest.raises(ContextLengthError, match=r"texts\[20\]"):
        await way(server.url, texts, checkpoint=tmp_path / "vectors")
    asked.clear()
    vectors = await way(server.url, texts, checkpoint=tmp_path / "vectors", on_error="none")
    assert list(vectors) == expected
    assert ([failure.index for failure in vectors.failures], asked) == ([20], [[LONG]])
    skipped = await way(server.url, texts, checkpoint=tmp_path / "vectors", on_error="skip")
    assert (list(skipped), skipped.indices) == ([each for each in expected if each], [*range(20), 21, 22])
    assert len(asked) == 1


# ---- whatever ends the process


JOB = """
import sys
from shared_engine import Engine
url, path, count = sys.argv[1:]
texts = ["x" * (position % 97 + 1) for position in range(int(count))]
file = Engine(base_url=url, model="served", engine_args={"max_num_seqs": 16}).embed_file(texts, path)
print(len(file.indices))
"""


def started(server: RemoteServer, path: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, server.url, str(path), str(count)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_and_repeats_nothing(server: RemoteServer, tmp_path: Path) -> None:
    asked = is_choosy(server)
    answer = server.handler

    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return await answer(request)

    server.handler = slowly
    path, count, in_flight = tmp_path / "vectors", 2000, 32
    for share in (0.1, 0.35, 0.6):
        job = started(server, path, count)
        before = asked_for(asked)
        wait_until(lambda: asked_for(asked) > max(before, share * count), 60, "some texts to be asked for")  # noqa: B023
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        job.communicate()
    with path.open("ab") as file:
        file.write(b'{"id":"1999-0123')  # the kill came in the middle of a line
    done = started(server, path, count)
    out, err = done.communicate(timeout=60)
    assert (out, done.returncode) == ("2000\n", 0), err
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert Counter(int(line["id"].partition("-")[0]) for line in lines) == Counter(range(1, count + 1))
    assert list(VectorFile(path)) == [vector_of("x" * (position % 97 + 1)) for position in range(count)]
    assert asked_for(asked) <= count + 3 * in_flight


@pytest.mark.slow
def test_two_processes_do_not_write_one_file(server: RemoteServer, tmp_path: Path) -> None:
    is_choosy(server)
    answer, may = server.handler, asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        await asyncio.wait_for(may.wait(), 60)
        return await answer(request)

    server.handler = held
    job = started(server, tmp_path / "vectors", 10)
    wait_until(lambda: bool(server.requests), 60, "the job to ask")
    with pytest.raises(VLLMError, match="is being written by another process"):
        Engine(base_url=server.url, model="served").embed_file(TEXTS[:10], tmp_path / "vectors")
    server.handler = answer
    job.kill()
    job.communicate()


class Lazy(Sequence[str]):
    """Texts that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError
        return f"text {index}"


@pytest.mark.slow
def test_memory_stays_flat(server: RemoteServer, tmp_path: Path) -> None:
    vector = base64.b64encode(array("f", [0.5] * 1024).tobytes()).decode()

    async def embedding(request: web.Request) -> web.StreamResponse:
        texts = (await request.json())["input"]
        server.requests.clear()
        return web.json_response({"data": [{"index": index, "embedding": vector} for index in range(len(texts))]})

    server.handler = embedding
    engine = Engine(base_url=server.url, model="served", engine_args={"max_num_seqs": 64})
    engine.embed_file(Lazy(100), tmp_path / "warm")
    tracemalloc.start()
    try:
        file = engine.embed_file(Lazy(1500), tmp_path / "vectors")
        assert sum(1 for each in file if each) == 1500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20, f"{peak >> 20} MiB"  # as lists, the vectors alone are 48 MiB
