"""Tokenizing without an engine: by what vLLM's Python exported, kept on disk; what is left to the server, and how."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from shared_engine import Engine, EngineSettings, InvalidInputError
from shared_engine.launcher import TOKENIZER_EXPORTER
from shared_engine.machine.proc import is_alive
from shared_engine.request.bodies import tokenize_request
from shared_engine.token_count import exported, local_tokenizer
from shared_engine.token_count.local_tokenizer import LocalTokenizer
from shared_engine.token_count.source import ServerOnlyError, TokenizerSource, source_of
from tests.support.interpreters import EXPORT, REFUSE, make_exporter, make_interpreter, runs_of
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.remote_server import running_server
from tests.support.small_tokenizers import TEXT, make_folder, tokenizer_of
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "vllm-local" / "tokenizers"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose tokenizer puts a special token before a prompt."""
    return make_folder(tmp_path / "model", "gemma", "gemma2", "GemmaTokenizer")


@pytest.fixture
def python(tmp_path: Path) -> str:
    return make_exporter(tmp_path / "environment")


def tokens(model: Path, python: str | None = None, text: str = TEXT, **settings: Any) -> list[int] | None:
    """A prompt's tokens, in a new object; None where they are left to the server."""
    local = LocalTokenizer(EngineSettings(model=str(model), python=python, **settings))
    return local.tokens(text, add_special_tokens=True)


def ids(kind: str, text: str = TEXT, *, add_special_tokens: bool = True) -> list[int]:
    tokenizer = Tokenizer.from_str(tokenizer_of(kind).to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return found


def forget() -> None:
    """As in a new process: only the disk remembers."""
    exported._loaded.clear()
    exported._refused.clear()


# ---- what is tokenized here


async def test_a_text_is_counted_with_its_special_tokens_and_tokenized_without(model: Path, python: str) -> None:
    engine = Engine(model=str(model), python=python)
    plain = ids("gemma", add_special_tokens=False)
    assert engine.count_tokens(TEXT) == await engine.acount_tokens(TEXT) == len(plain) + 1
    assert engine.tokenize(TEXT) == await engine.atokenize(TEXT) == plain
    assert engine.count_tokens("") == 1
    assert engine.tokenize("") == []
    strings = tokenizer_of("gemma").encode(TEXT, add_special_tokens=False).tokens
    assert engine.token_strings(TEXT) == await engine.atoken_strings(TEXT) == strings


def test_nothing_is_started(runtime_root: Path, model: Path, python: str) -> None:
    before = set(runtime_root.iterdir())
    Engine(model=str(model), python=python, seed=987654).count_tokens(TEXT)
    assert set(runtime_root.iterdir()) == before


@pytest.mark.parametrize("mode", ["local", "auto"])
def test_no_engine_is_started_for_a_count_wherever_it_would_run(model: Path, python: str, mode: Any) -> None:
    assert Engine(model=str(model), python=python, mode=mode).count_tokens(TEXT) == len(ids("gemma"))
    assert runs_of(python) == 1


def test_truncation_and_padding_do_not_count(tmp_path: Path, python: str) -> None:
    folder = make_folder(tmp_path / "padded", "padded")
    assert tokens(folder, python, "a") == ids("llama3", "a")
    assert tokens(folder, python, TEXT * 20) == ids("llama3", TEXT * 20)


def test_a_tokenizer_goes_to_other_processes(model: Path, python: str) -> None:
    tokenize = Engine(model=str(model), python=python).tokenize
    assert pickle.loads(pickle.dumps(tokenize))(TEXT) == tokenize(TEXT)


async def test_the_event_loop_goes_on_during_an_export(tmp_path: Path, model: Path) -> None:
    may_end = tmp_path / "may end"
    waiting = f"while not os.path.exists({str(may_end)!r}): time.sleep(0.01)"
    engine = Engine(model=str(model), python=make_exporter(tmp_path / "slow", f"{waiting}\n{EXPORT}"))
    counting = asyncio.create_task(engine.acount_tokens(TEXT))
    await asyncio.sleep(0)
    may_end.touch()  # by this loop, or it would never end
    assert await counting == len(ids("gemma"))


def test_vllm_gets_the_servers_flags_and_environment_and_downloads_nothing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("PYTHONPATH", "the app's")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    told = tmp_path / "told"
    code = f"json.dump([sys.argv[2:], dict(os.environ), os.getcwd()], open({str(told)!r}, 'w'))"
    args = {"hf_overrides": {"a": 1}, "max_num_seqs": 4}
    python = make_exporter(tmp_path / "environment", f"{code}\n{EXPORT}")
    assert tokens(model, python, revision="v1", max_model_len=8, engine_args=args) == ids("gemma")
    argv, environment, folder = json.loads(told.read_text())
    assert argv == ["--model", str(model), "--revision", "v1", "--hf-overrides", '{"a": 1}']
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert {"PYTHONPATH", "VLLM_API_KEY"}.isdisjoint(environment)
    assert folder == "/"


# ---- what is left to the server


@pytest.mark.slow
def test_other_threads_run_while_a_long_text_is_tokenized(model: Path, python: str) -> None:
    text = "a b c " * 50_000
    assert tokens(model, python) == ids("gemma")  # exported
    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(tokens, model, python, text)
        ran = 0
        while not counting.done():
            time.sleep(0.001)
            ran += 1
    assert counting.result() == ids("gemma", text)
    assert ran > 10


def test_a_remote_server_tokenizes_itself() -> None:
    with running_server() as server:
        engine = Engine(base_url=server.url)
        assert engine.tokenize("one two three") == [0, 1, 2]
        assert engine.token_strings("one two") == ["t0", "t1"]


FAILURES = {
    "refused": (REFUSE, "of its kind"),
    "failed": ("sys.exit('Traceback\\nValueError: no such thing')", "alone: ValueError: no such thing"),
    "killed": ("os.kill(os.getpid(), 9)", "alone: "),
    "garbage": ("print('{')", "could not be exported: "),
    "other tokens": (EXPORT.replace('"probes": []', '"probes": [["a", [1], [1]]]'), "gives 'a' other tokens"),
    "unknown": ("print(json.dumps({'tokenizer': '{}', 'probes': []}))", "can't read its tokenizer"),
    "too slow": ("time.sleep(60)", "took longer than 1 s"),
}


@pytest.mark.parametrize(
    "failure", [pytest.param(each, marks=pytest.mark.slow) if each == "too slow" else each for each in FAILURES]
)
def test_what_vllm_does_not_export_is_left_to_the_server_and_asked_for_once(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    code, reason = FAILURES[failure]
    if failure == "too slow":
        monkeypatch.setattr(exported, "EXPORT_TIMEOUT_S", 1)
    python = make_exporter(tmp_path / "environment", code)
    with caplog.at_level(logging.INFO, "shared_engine"):
        assert tokens(model, python) is tokens(model, python, "another text") is None
    assert runs_of(python) == 1
    (told,) = [record.getMessage() for record in caplog.records if "counted by the server" in record.getMessage()]
    assert told.startswith(f"tokens of {model} are counted by the server: ")
    caplog.clear()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told)
    forget()
    assert tokens(model, python) is None
    is_kept = failure in ("refused", "other tokens", "unknown")  # so it will be again; the others may pass
    assert runs_of(python) == (1 if is_kept else 2)


def test_what_is_not_here_yet_is_left_to_the_server_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    assert tokens(Path("org/name"), make_interpreter(tmp_path / "no vllm", None)) is None
    assert tokens(Path("org/name"), python) is None
    assert runs_of(python) == 0
    snapshot = make_folder(hub / "models--org--name" / "snapshots" / "0123abc", "gemma")
    (hub / "models--org--name" / "refs").mkdir()
    (hub / "models--org--name" / "refs" / "main").write_text("0123abc")
    code = f"model = pathlib.Path({str(snapshot)!r})"  # vLLM finds it by itself
    assert tokens(Path("org/name"), make_exporter(tmp_path / "other", f"{code}\n{EXPORT}")) == ids("gemma")


@pytest.mark.slow
def test_without_the_package_the_server_counts(model: Path, python: str) -> None:
    code = f"""
import sys
sys.modules["tokenizers"] = None
from shared_engine import EngineSettings
from shared_engine.token_count.local_tokenizer import LocalTokenizer
settings = EngineSettings(model={str(model)!r}, python={python!r})
print(LocalTokenizer(settings).tokens("Hello", add_special_tokens=True))
"""
    assert run(code) == "None"
    assert runs_of(python) == 0


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=60
    )
    assert not done.stderr
    return done.stdout.strip()


# ---- kept on disk


def test_a_tokenizer_is_exported_once_for_all_processes(model: Path, python: str, cache: Path) -> None:
    assert tokens(model, python) == ids("gemma")
    forget()
    assert tokens(model, python) == ids("gemma")
    assert runs_of(python) == 1
    assert cache.stat().st_mode & 0o777 == 0o700


def changed_file(model: Path, python: str) -> None:
    make_folder(model, "gemma", config={"model_max_length": 1000})


def new_file(model: Path, python: str) -> None:
    (model / "added_tokens.json").write_text("{}")


def other_packages(model: Path, python: str) -> None:
    (Path(python).parent.parent / "lib/python3.11/site-packages/transformers-9.dist-info").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("change", [changed_file, new_file, other_packages])
def test_what_changed_is_exported_again(model: Path, python: str, change: Callable[[Path, str], None]) -> None:
    assert tokens(model, python) == ids("gemma")
    change(model, python)
    assert tokens(model, python) == ids("gemma")
    assert runs_of(python) == 2


def key(model: Path, python: str, **settings: Any) -> str:
    return source_of(EngineSettings(model=str(model), python=python, **settings)).key


def test_only_what_may_decide_a_tokenizer_tells_sources_apart(
    tmp_path: Path, model: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    same: list[dict[str, Any]] = [
        {},
        {"max_model_len": 9, "dtype": "float32", "seed": 1, "idle_ttl_s": 3, "api_key": "k"},
        {"engine_args": {"max_num_seqs": 3, "chat_template": "x", "tool_call_parser": "y"}},
    ]
    keys = {key(model, python, **settings) for settings in same}
    (model / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert keys == {key(Path(model.name), python)}
    other: list[dict[str, Any]] = [
        {},
        {"revision": "v1"},
        {"tokenizer": str(make_folder(tmp_path / "tokenizer"))},
        {"trust_remote_code": True},
        {"engine_args": {"tokenizer_mode": "slow"}},
        {"engine_args": {"some_flag_of_the_future": 1}},
    ]
    keys = {key(model, python, **settings) for settings in other}
    keys.add(key(model, make_exporter(tmp_path / "another", version="0.33.0")))
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert key(model, python) in keys
    monkeypatch.setenv("VLLM_USE_FASTOKENS", "1")
    keys.add(key(model, python))
    assert len(keys) == len(other) + 2


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"half"])
def test_a_damaged_file_is_made_again(model: Path, python: str, cache: Path, damage: bytes) -> None:
    tokens(model, python)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    forget()
    assert tokens(model, python) == ids("gemma")
    assert runs_of(python) == 2
    assert file.read_bytes() == whole


def a_file(cache: Path) -> None:
    cache.parent.parent.write_text("")


def a_link(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.symlink_to(cache.parent)


def open_to_others(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)


@pytest.mark.slow
@pytest.mark.parametrize("make", [a_file, a_link, open_to_others])
def test_a_folder_that_can_not_be_used_costs_only_the_cache(
    model: Path, python: str, cache: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(cache)
    with caplog.at_level(logging.INFO, "shared_engine"):
        assert tokens(model, python) == tokens(model, python) == ids("gemma")
    assert "not kept" in caplog.text
    forget()
    assert tokens(model, python) == ids("gemma")
    assert runs_of(python) == 2


def test_a_full_disk_costs_only_the_cache(model: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exported, "write_atomically", full)
    assert tokens(model, python) == ids("gemma")


@pytest.mark.slow
def test_the_oldest_files_are_removed(
    tmp_path: Path, python: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "MAX_KEPT", 2)
    folders = [make_folder(tmp_path / name, "gemma") for name in "abc"]
    for folder in folders[:2]:
        tokens(folder, python)
    (first, second) = (cache / key(folder, python) for folder in folders[:2])
    for age, file in ((200, second), (100, first)):
        os.utime(file, (time.time() - age,) * 2)
    forget()
    tokens(folders[1], python)  # the older one is used
    tokens(folders[2], python)
    assert {file.name for file in cache.iterdir()} == {key(folder, python) for folder in folders[1:]}


# ---- while vLLM exports


@pytest.fixture
def exporting(tmp_path: Path) -> Path:
    """The file that ends the export of ``slow_python``."""
    return tmp_path / "may end"


@pytest.fixture
def slow_python(tmp_path: Path, exporting: Path) -> str:
    waiting = f"while not os.path.exists({str(exporting)!r}): time.sleep(0.01)"
    return make_exporter(tmp_path / "slow", f"{waiting}\n{EXPORT}")


def test_an_engine_that_runs_is_asked_meanwhile(model: Path, slow_python: str, exporting: Path) -> None:
    local = LocalTokenizer(EngineSettings(model=str(model), python=slow_python), is_up=lambda: True)
    another = LocalTokenizer(EngineSettings(model=str(model), python=slow_python), is_up=lambda: True)
    for each in (local, another, local):
        assert each.tokens(TEXT, add_special_tokens=True) is None
        assert each.chat_tokens(HELLO, None, {}) is None
    exporting.touch()
    wait_until(lambda: local.tokens(TEXT, add_special_tokens=True) is not None, 20, "the export")
    assert local.tokens(TEXT, add_special_tokens=True) == ids("gemma")
    assert runs_of(slow_python) == 1


def test_places_of_tokens_are_waited_for_since_no_engine_says_them(
    model: Path, slow_python: str, exporting: Path
) -> None:
    local = LocalTokenizer(EngineSettings(model=str(model), python=slow_python), is_up=lambda: True)
    assert local.tokens(TEXT, add_special_tokens=True) is None
    exporting.touch()
    encoding = local.encoding(TEXT, add_special_tokens=True)
    assert encoding is not None
    assert encoding.ids == ids("gemma")
    assert runs_of(slow_python) == 1


def test_what_is_on_disk_is_used_at_once(model: Path, python: str) -> None:
    assert tokens(model, python) == ids("gemma")
    forget()
    local = LocalTokenizer(EngineSettings(model=str(model), python=python), is_up=lambda: True)
    assert local.tokens(TEXT, add_special_tokens=True) == ids("gemma")
    assert runs_of(python) == 1


def test_a_refusal_is_asked_for_once(tmp_path: Path, model: Path) -> None:
    forget()
    python = make_exporter(tmp_path / "refusing", REFUSE)
    local = LocalTokenizer(EngineSettings(model=str(model), python=python), is_up=lambda: True)
    assert local.tokens(TEXT, add_special_tokens=True) is None
    wait_until(lambda: bool(exported._refused), 20, "the refusal")
    assert local.tokens(TEXT, add_special_tokens=True) is None
    assert runs_of(python) == 1


def test_what_only_an_engine_knows_is_looked_for_once_a_second_at_most(
    model: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are counted before they are sent, and to look reads folders."""
    looks: list[EngineSettings] = []

    def source(settings: EngineSettings) -> TokenizerSource:
        looks.append(settings)
        raise ServerOnlyError("it was not downloaded yet")

    monkeypatch.setattr(local_tokenizer, "source_of", source)
    local = LocalTokenizer(EngineSettings(model=str(model), python=python), is_up=lambda: True)
    monkeypatch.setattr(local_tokenizer, "KEPT_S", 60.0)
    for _ in range(3):
        assert local.tokens(TEXT, add_special_tokens=True) is None
    assert len(looks) == 1


def test_another_model_does_not_wait_for_the_export(
    tmp_path: Path, model: Path, python: str, slow_python: str, exporting: Path
) -> None:
    other = make_folder(tmp_path / "other", "llama3")
    tokens(other, python)
    forget()
    exports, is_kept = (
        LocalTokenizer(EngineSettings(model=str(path), python=each), is_up=lambda: True)
        for path, each in ((model, slow_python), (other, python))
    )
    assert exports.tokens(TEXT, add_special_tokens=True) is None
    wait_until(lambda: runs_of(slow_python) == 1, 20, "the export")
    with ThreadPoolExecutor(1) as pool:
        try:
            assert pool.submit(is_kept.tokens, TEXT, add_special_tokens=True).result(timeout=10) is None
        finally:
            exporting.touch()
    wait_until(lambda: is_kept.tokens(TEXT, add_special_tokens=True) == ids("llama3"), 20, "the other's turn")


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not end a process with its parent")
def test_an_exporter_ends_with_its_app(tmp_path: Path) -> None:
    fake = tmp_path / "vllm" / "engine"
    fake.mkdir(parents=True)
    for folder in (fake, fake.parent):
        (folder / "__init__.py").touch()
    note = tmp_path / "pid"
    (fake / "arg_utils.py").write_text(
        f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    app = f"import subprocess; subprocess.Popen([{sys.executable!r}, {str(TOKENIZER_EXPORTER)!r}])\ninput()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", app], stdin=subprocess.PIPE, env=environment) as process:
        wait_until(lambda: note.exists() and bool(note.read_text()), 20, "the exporter's start")
        process.kill()
    wait_until(lambda: not is_alive(int(note.read_text())), 20, "the exporter's end")


# ---- at the same time


@pytest.mark.slow
def test_threads_share_one_export(model: Path, python: str) -> None:
    texts = [TEXT * count for count in range(1, 33)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: tokens(model, python, text), texts))
    assert found == [ids("gemma", text) for text in texts]
    assert runs_of(python) == 1


@pytest.mark.slow
def test_processes_do_each_other_no_harm(model: Path, python: str, cache: Path) -> None:
    code = f"from shared_engine import Engine; print(Engine(model={str(model)!r}, python={python!r}).count_tokens('a'))"
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(run, [code] * 2)) == {str(len(ids("gemma", "a")))}
    assert [file.name for file in cache.iterdir()] == [key(model, python)]


@pytest.mark.slow
def test_a_child_that_was_forked_during_an_export_counts_too(model: Path, python: str) -> None:
    code = f"""
import os
from shared_engine import Engine
from shared_engine.token_count import exported
engine = Engine(model={str(model)!r}, python={python!r})
with exported._lock:  # as if a thread held it
    child = os.fork()
    if child == 0:
        os._exit(engine.count_tokens("Hello there"))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code) == str(len(ids("gemma", "Hello there")))


@pytest.mark.slow
def test_only_a_few_tokenizers_stay_in_memory(tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setattr(exported, "MAX_LOADED", 2)
    for name in "abc":
        assert tokens(make_folder(tmp_path / name, "gemma"), python) == ids("gemma")
    assert len(exported._loaded) == 2


# ---- what the server is given


def test_the_older_name_of_reasoning_is_counted_as_chat_takes_it() -> None:
    def part(**fields: str) -> list[dict[str, Any]]:
        messages = [{"role": "assistant", "content": "a", **fields}]
        told: list[dict[str, Any]] = json.loads(tokenize_request(messages, None, None).body)["messages"]
        assert messages == [{"role": "assistant", "content": "a", **fields}], "the caller's stays as it is"
        return told

    assert part(reasoning_content="why") == part(reasoning="why")
    assert part(reasoning_content="older", reasoning="why") == part(reasoning="why")


def test_a_conversation_is_sent_with_its_tools_and_variables() -> None:
    request = tokenize_request(HELLO, (TOOL,), {"level": 1})
    assert json.loads(request.body) == {"messages": HELLO, "tools": [TOOL], "chat_template_kwargs": {"level": 1}}
    assert json.loads(tokenize_request(HELLO, [], {}).body) == {"messages": HELLO}


@pytest.mark.parametrize(
    ("what", "tools", "match"),
    [
        ([], None, "empty conversation"),
        ([{"role": "robot", "content": "a"}], None, "unknown role"),
        ("Hello", [TOOL], "go with messages"),
        (HELLO, [{"type": "function", "function": {"name": object()}}], "JSON"),
        ("a lone \ud800", None, "JSON"),
        ([{"role": "user", "content": "a lone \ud800"}], None, "JSON"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(python: str, what: Any, tools: Any, match: str) -> None:
    engine = Engine(model=str(TINY_CHAT), python=python)
    with pytest.raises(InvalidInputError, match=match):
        engine.count_tokens(what, tools=tools)
    assert runs_of(python) == 0


@pytest.mark.slow
async def test_a_text_that_has_no_tokens_is_refused(python: str) -> None:
    engine = Engine(model=str(TINY_CHAT), python=python)
    for text, match in (("a lone \ud800", "JSON"), (5, "must be a string")):
        with pytest.raises(InvalidInputError, match=match):
            engine.tokenize(text)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=match):
            await engine.atokenize(text)  # type: ignore[arg-type]
