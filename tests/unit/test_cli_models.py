"""pull, list and show: models on a disk and on a hub, without vLLM."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineSettings
from shared_engine.cli.commands.list import SETTING, VARIABLE
from shared_engine.cli.commands.show import counted
from shared_engine.cli.disk_models import model_named, models_on_disk
from shared_engine.cli.main import main
from shared_engine.cli.model_description import Fit, cache_bytes_per_token, fit_of, licence_of
from shared_engine.launcher.fetch_model import needed
from shared_engine.model_files.folder import kind_of
from shared_engine.runtime.record import EngineState
from shared_engine.runtime.spec import EngineSpec
from shared_engine.settings import ENVIRONMENT
from tests.support.fake_nvml import GIB, A, FakeNvml, gpu
from tests.support.hand_made import MakeEngine
from tests.support.hub import COMMIT, hub
from tests.support.interpreters import make_fetcher
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.screens import frames_of, shown_by
from tests.support.waiting import wait_until

Capture = pytest.CaptureFixture[str]
MODEL = "maintainers/tiny_chat"


@pytest.fixture(autouse=True)
def of_their_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


@pytest.fixture
def python(tmp_path: Path) -> str:
    return make_fetcher(tmp_path / "env")


# ---- which files


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.gguf"], ["model.safetensors"]),
        (["a-2.safetensors", "a-1.safetensors", "consolidated.safetensors"], ["consolidated.safetensors"]),
        (["m.safetensors", "original/m.safetensors", "onnx/model.onnx"], ["m.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (["model.safetensors", "2_Dense/model.safetensors"], ["model.safetensors", "2_Dense/model.safetensors"]),
        (["model.gguf", "model.onnx"], []),
    ],
)
def test_of_the_weights_those_are_fetched_that_vllm_loads(files: list[str], weights: list[str]) -> None:
    assert needed(files) == (weights, [])


def test_what_is_read_beside_the_weights_is_fetched_too() -> None:
    files = [
        "config.json", "tokenizer.model", "chat_template.jinja", "modeling.py", "README.md", "LICENSE", "tekken.json",
        "1_Pooling/config.json", "additional_chat_templates/tool_use.jinja", "model.safetensors.index.json",
    ]  # fmt: skip
    unused = [
        "original/config.json",
        "figures/plot.png",
        ".gitattributes",
        "onnx/config.json",
        "training_args.bin.txt.png",
    ]
    assert needed([*files, *unused]) == ([], sorted(files))


# ---- pull


def pulled(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shared_engine.cli", "pull", *arguments, "--python", python]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False)


@pytest.mark.slow
def test_a_model_is_fetched_and_then_listed_and_shown(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with hub(TINY_CHAT, MODEL) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        done = pulled(python, MODEL, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        told = json.loads(done.stdout)
        folder = Path(told["folder"])
        assert folder == tmp_path / f"hub/hub/models--maintainers--tiny_chat/snapshots/{COMMIT}"
        for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"):
            assert (folder / name).read_bytes() == (TINY_CHAT / name).read_bytes()
        assert not (folder / "adapters").exists()
        assert told["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        assert pulled(python, MODEL).stdout.startswith(f"{MODEL} is here after ")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["pull", MODEL]) == 0
    assert "HF_HUB_OFFLINE is set, so the hub was not asked" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["name"], model["folder"], model["is_whole"], model["is_loaded"]) == (MODEL, str(folder), True, False)
    assert main(["show", MODEL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context_window"] == 2048


@pytest.mark.slow
def test_a_terminal_shows_how_much_has_come(python: str) -> None:
    with hub(TINY_CHAT, MODEL, bytes_per_s=4_000_000) as url:
        shown = shown_by(["pull", MODEL, "--python", python], HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
    assert "tiny_chat: 100%|" in shown
    assert frames_of(shown)[-1].startswith(f"{MODEL} is here after ")


@pytest.mark.slow
def test_an_interrupted_download_goes_on(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    blobs = tmp_path / "hub/hub/models--maintainers--tiny_chat/blobs"
    with hub(TINY_CHAT, MODEL, stands_still=True) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        command = [sys.executable, "-m", "shared_engine.cli", "pull", MODEL, "--python", python]
        pull = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
        try:
            wait_until(lambda: [*blobs.glob("*.incomplete")], 30, "a part of it")
            pull.send_signal(signal.SIGINT)
            _, errors = pull.communicate(timeout=20)
        finally:
            pull.kill()
            pull.communicate()
    assert (pull.returncode, errors) == (
        130,
        "vllm-local: interrupted; what has come stays: run the same command again to go on\n",
    )
    (model,) = models_on_disk(None)
    assert not model.is_whole
    with hub(TINY_CHAT, MODEL) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert pulled(python, MODEL).returncode == 0
    (model,) = models_on_disk(None)
    assert model.is_whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["other/model"], "other/model could not be fetched: the hub has no model other/model, or it is private: then"),
        (["--download-dir", "{folder}", MODEL], ""),
    ],
)
def test_what_the_hub_refuses_is_told(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with hub(TINY_CHAT, MODEL) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        done = pulled(python, *(each.format(folder=tmp_path / "weights") for each in arguments))
    if told:
        assert done.returncode == 1
        assert told in done.stderr
    else:
        assert done.returncode == 0
        (weights,) = (tmp_path / "weights").rglob("model.safetensors")
        assert weights.stat().st_size == (TINY_CHAT / "model.safetensors").stat().st_size
        assert not [*(tmp_path / "hub").rglob("model.safetensors")]
        assert [*(tmp_path / "hub").rglob("config.json")]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([MODEL], 1, f"{MODEL} is not on this disk, and HF_HUB_OFFLINE is set: unset it to ask the hub"),
        ([str(TINY_CHAT)], 2, "is on this disk already: pull takes an id on the hub"),
        (["-", "--base-url", "http://h"], 2, "name its hub id, without base_url"),
    ],
)
def test_what_cannot_be_pulled_is_told(capsys: Capture, arguments: list[str], code: int, told: str) -> None:
    assert main(["pull", *arguments]) == code
    assert told in capsys.readouterr().err


# ---- list


def cached(name: str, tmp_path: Path, blobs: dict[str, int], *, is_named: bool = True) -> Path:
    folder = tmp_path / "hub/hub" / f"models--{name.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    for blob, size in blobs.items():
        (folder / "blobs" / blob).write_bytes(b"x" * size)
    if is_named:
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("abc")
        (folder / "snapshots/abc").mkdir(parents=True)
    return folder


def test_list_looks_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert ENVIRONMENT[SETTING] == VARIABLE
    for place in ("of-the-file", "of-the-variable", "of-the-option"):
        (tmp_path / place / f"models--org--{place}").mkdir(parents=True)
    file = tmp_path / "config/vllm-local/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"download_dir = '{tmp_path}/of-the-file'")
    assert main(["list", "--names"]) == 0
    monkeypatch.setenv(VARIABLE, str(tmp_path / "of-the-variable"))
    assert main(["list", "--names"]) == 0
    assert main(["list", "--names", "--download-dir", str(tmp_path / "of-the-option")]) == 0
    assert capsys.readouterr().out == "org/of-the-file\norg/of-the-variable\norg/of-the-option\n"


def test_a_model_whose_weights_are_elsewhere_is_one_model(tmp_path: Path) -> None:
    cached("org/name", tmp_path, {"config": 1 << 20})
    weights = tmp_path / "weights/models--org--name/blobs"
    weights.mkdir(parents=True)
    (weights / "w.1.incomplete").write_bytes(b"x" * (2 << 20))
    (model,) = models_on_disk(str(tmp_path / "weights"))
    assert (model.name, model.bytes, model.is_whole) == ("org/name", 3 << 20, False)


def test_list_of_nothing(capsys: Capture) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "no models on this disk; `vllm-local pull MODEL` fetches one\n"


@pytest.mark.slow
def test_list_has_models_of_the_cache_and_folders_of_engines(
    tmp_path: Path, hand_made: MakeEngine, capsys: Capture
) -> None:
    cached("org/whole", tmp_path, {"a": 3 << 20, "b.1.incomplete": 5, "b": 1 << 20})
    cached("org/begun", tmp_path, {"a.1.incomplete": 1 << 20}, is_named=False)
    hand_made(model=str(TINY_CHAT))
    hand_made("f" * 16, supervisor=None, model="/no/such/folder", state=EngineState.STOPPED)
    assert main(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["MODEL", "SIZE", "CHANGED", "STATE"]
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    today = time.strftime("%Y-%m-%d")
    assert rows["org/whole"] == ["4M", today]
    assert rows["org/begun"] == ["1M", today, "incomplete:", "pull", "it", "again"]
    assert rows[str(TINY_CHAT)][2:] == ["loaded"]
    assert len(rows) == 3


# ---- rm


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The setting download_dir."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_rm_deletes_all_that_is_here_of_models(tmp_path: Path, weights: Path, capsys: Capture) -> None:
    gone = [
        cached("org/whole", tmp_path, {"a": 3 << 20}),
        cached("org/begun", tmp_path, {"a.1.incomplete": 5}, is_named=False),
    ]
    elsewhere = weights / "models--org--whole/blobs"
    elsewhere.mkdir(parents=True)
    (elsewhere / "w").write_bytes(b"x" * (1 << 20))
    locks = gone[0].parent / ".locks" / gone[0].name
    locks.mkdir(parents=True)
    (locks / "a.lock").touch()
    stays = cached("org/other", tmp_path, {"a": 1})
    assert main(["rm", "org/whole", "begun", "whole"]) == 0
    assert capsys.readouterr().out == "org/whole is deleted: 4M\norg/begun is deleted: 0M\n"
    assert [each.exists() for each in (*gone, elsewhere.parent, locks, stays)] == [False, False, False, False, True]


def refusals(tmp_path: Path, hand_made: MakeEngine) -> dict[str, tuple[str, str]]:
    """What is named, and what is said of it."""
    cached("org/loaded", tmp_path, {"a": 1})
    hand_made(model="org/loaded")
    hand_made("e" * 16, model=str(TINY_CHAT))
    (tmp_path / "folder").mkdir()
    return {
        "a model that is loaded": ("loaded", "org/loaded is loaded: `vllm-local unload org/loaded` first"),
        "an engine's folder": (
            str(TINY_CHAT),
            f"{TINY_CHAT} is a folder of yours, not from the hub: delete it yourself",
        ),
        "another folder": (str(tmp_path / "folder"), "is not a model from the hub on this disk"),
        "a way out of the cache": ("../org/other", "is not a model from the hub on this disk"),
        "an unknown one": (
            "org/none",
            "'org/none' is not a model from the hub on this disk: `vllm-local list` shows those",
        ),
        "an empty name": ("", "is not a model from the hub on this disk"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "a model that is loaded",
        "an engine's folder",
        "another folder",
        "a way out of the cache",
        "an unknown one",
        "an empty name",
    ],
)
def test_rm_of_what_it_must_not_delete_deletes_nothing(
    case: str, tmp_path: Path, hand_made: MakeEngine, capsys: Capture
) -> None:
    stays = cached("org/other", tmp_path, {"a": 1})
    name, says = refusals(tmp_path, hand_made)[case]
    assert main(["rm", "org/other", name]) == 2
    assert says in capsys.readouterr().err
    assert stays.exists()


def test_rm_of_what_is_being_fetched_deletes_nothing(tmp_path: Path, capsys: Capture) -> None:
    folder = cached("org/name", tmp_path, {"a": 1})
    lock = folder.parent / ".locks" / folder.name / "a.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["rm", "org/name"]) == 1
        assert "org/name is being fetched: end that first" in capsys.readouterr().err
        assert (folder / "blobs/a").exists()
    assert main(["rm", "org/name"]) == 0


# ---- names


def test_a_model_on_this_disk_is_known_by_the_last_part_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("org/whole", "org/twin", "other/twin", "gpt", "someone/gpt"):
        cached(name, tmp_path, {"a": 1})
    (tmp_path / "folder").mkdir()
    asked = ("whole", "gpt", "none", "other/none", "./folder", "folder")
    assert [model_named(each, None) for each in asked] == [
        "org/whole",
        "gpt",
        "none",
        "other/none",
        "./folder",
        "folder",
    ]
    assert main(["show", "twin"]) == 2
    assert "model = 'twin' means 2 models on this disk: org/twin, other/twin" in capsys.readouterr().err
    assert main(["show", "whole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "org/whole"
    assert main(["config", "model", "--base-url", "http://h"]) == 0


# ---- show


def test_show_tells_what_the_files_say(capsys: Capture) -> None:
    assert main(["show", str(TINY_CHAT), "--python", "/no/python"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["kind"] == "chat (LlamaForCausalLM)"
    assert shown["weights"].startswith("3.3M parameters, 6M, bfloat16, not quantised")
    assert shown["context"].startswith("2048 tokens")
    assert shown["template"] == "chat, with tools and a switch for thinking"
    assert shown["parsers"] == "tool calls: hermes; reasoning: deepseek_v3"
    assert shown["memory"].startswith("not known whether it fits: python = '/no/python' does not exist")


def test_show_says_whether_it_fits_beside_its_cache(python: str, capsys: Capture) -> None:
    command = ["show", str(TINY_CHAT), "--python", python, "--max-model-len", "512", "--json"]
    for cache, fits in ((64 << 20, True), (1 << 50, False)):
        assert main([*command, "--engine-args", json.dumps({"kv_cache_memory_bytes": cache})]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["fits"], told["cache_bytes"], told["context_window"]) == (fits, cache, 512)
        assert told["cache_tokens"] == cache // (2 * 4 * 2 * 64 * 2)


def test_show_of_what_is_not_here_says_how_to_get_it(capsys: Capture) -> None:
    assert main(["show", "Qwen/Qwen3-4B"]) == 0
    assert "not on this disk: `vllm-local pull Qwen/Qwen3-4B`" in capsys.readouterr().out
    assert main(["show", "/no/such/folder"]) == 2
    assert main(["show", "-", "--base-url", "http://h"]) == 2


def test_show_of_a_single_file_says_that_it_is_one(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x" * (3 << 20))
    assert main(["show", str(tmp_path / "model.gguf")]) == 0
    assert "model.gguf, 3M: vLLM alone reads what is in it" in capsys.readouterr().out


QWEN: dict[str, Any] = {
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "dtype": "bfloat16", "model_type": "qwen3", "layer_types": ["full_attention"] * 36,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "settings", "count"),
    [
        (QWEN, {}, 2 * 36 * 8 * 128 * 2),
        ({"text_config": QWEN}, {}, 2 * 36 * 8 * 128 * 2),
        (QWEN, {"dtype": "float32"}, 2 * 36 * 8 * 128 * 4),
        (QWEN, {"engine_args": {"kv_cache_dtype": "fp8"}}, 2 * 36 * 8 * 128),
        ({**QWEN, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, {}, 36 * 576 * 2),
        ({**QWEN, "layer_types": ["linear_attention", "full_attention"]}, {}, None),
        ({**QWEN, "model_type": "bert"}, {}, None),
        ({}, {}, None),
    ],
)
def test_how_much_of_the_cache_a_token_takes(config: Any, settings: Any, count: int | None) -> None:
    assert cache_bytes_per_token(config, EngineSettings(model="org/name", **settings)) == count


def test_on_a_gpu_the_share_that_vllm_takes_must_be_free(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A, total=80 * GIB, free=50 * GIB))
    spec = EngineSpec((), "python", "0.32.0", "model", devices=("cuda:0", "cuda:1"), memory_share=0.5)
    assert fit_of(spec, 30 * GIB) == Fit("cuda:0", needed=40 * GIB, cache=25 * GIB, free=50 * GIB)
    assert Fit("cuda:0", needed=40 * GIB, cache=25 * GIB, free=50 * GIB).fits
    assert not Fit("cuda:0", needed=60 * GIB, cache=25 * GIB, free=50 * GIB).fits
    assert fit_of(spec, 90 * GIB) == Fit("cuda:0", needed=40 * GIB, cache=0, free=50 * GIB)
    assert not Fit("cuda:0", needed=40 * GIB, cache=0, free=50 * GIB).fits, "there is no room for a cache"
    assert fit_of(replace(spec, devices=("cuda:7",)), 1) is None


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# Model"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: 'qwen'\n---\n"}, "qwen"),
        ({"README.md": "# Model\nlicense: mit", "LICENSE": "\n  MIT License\n"}, "MIT License"),
        ({}, None),
    ],
)
def test_the_licence_is_what_the_files_name(tmp_path: Path, files: dict[str, str], licence: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == licence


def test_what_a_model_is_for(tmp_path: Path) -> None:
    assert kind_of(tmp_path, {"architectures": ["BertForSequenceClassification"]}) == "rerank"
    assert kind_of(tmp_path, {"architectures": ["BertModel"]}) == "embed"
    assert kind_of(tmp_path, {"architectures": ["LlamaForCausalLM"]}) == "text"
    assert kind_of(TINY_CHAT, {"architectures": ["LlamaForCausalLM"]}) == "chat"
    (tmp_path / "modules.json").write_text("[]")
    assert kind_of(tmp_path, {"architectures": ["Qwen3ForCausalLM"]}) == "embed"


@pytest.mark.parametrize(("number", "text"), [(3_282_176, "3.3M"), (4_020_000_000, "4.02B")])
def test_parameters_are_counted_in_words(number: int, text: str) -> None:
    assert counted(number) == text
