"""Where vLLM's CPU build is slow in bfloat16, and that it is said."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import pytest

from shared_engine import EngineSettings
from shared_engine.launch import spec
from shared_engine.machine.processor import is_slow_in_bfloat16
from tests.support.interpreters import make_interpreter


@pytest.mark.parametrize(
    ("machine", "text", "slow"),
    [
        (
            "x86_64",
            "processor\t: 0\nflags\t\t: fpu avx avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu avx avx2 fma\n",
            True,
        ),
        ("x86_64", "flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n", False),
        ("x86_64", "processor\t: 0\n", False),  # nothing is known
        ("aarch64", "Features\t: fp asimd\n", False),
    ],
    ids=["AVX2", "AVX-512", "no flags", "ARM"],
)
def test_a_processor_without_avx_512_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, text: str, slow: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    cpuinfo = tmp_path / "cpuinfo"
    assert not is_slow_in_bfloat16(tmp_path / "nothing")
    cpuinfo.write_text(text)
    assert is_slow_in_bfloat16(cpuinfo) is slow


@pytest.mark.parametrize(
    ("build", "dtype", "slow", "said"),
    [
        ("vllm_cpu", "auto", True, 1),
        ("vllm_cpu", "auto", False, 0),
        ("vllm_cpu", "bfloat16", True, 0),  # what the user has chosen
        ("vllm", "auto", True, 0),
    ],
    ids=["slow", "fast", "chosen", "CUDA"],
)
def test_it_is_said_once_where_the_type_is_left_to_vllm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    build: str,
    dtype: str,
    slow: bool,
    said: int,
) -> None:
    monkeypatch.setattr(spec, "is_slow_in_bfloat16", lambda: slow)
    spec._say_once.cache_clear()
    python = make_interpreter(tmp_path / "env", f"{build}-0.32.0")
    settings = EngineSettings.model_validate({"model": "org/name", "python": python, "dtype": dtype})
    with caplog.at_level(logging.WARNING, "shared_engine"):
        specs = [spec.engine_spec(settings) for _ in range(2)]
    assert [record.getMessage() for record in caplog.records].count(spec.SLOW_IN_BFLOAT16) == said
    assert ("--dtype", dtype) in zip(specs[0].argv, specs[0].argv[1:], strict=False), "it is not changed"
