"""Where vLLM's CPU build is slow in bfloat16, and that it is said."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from shared_engine.launcher import api_server
from shared_engine.machine.processor import is_slow_in_bfloat16


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
    ("argv", "slow", "said"),
    [
        (["--model", "m", "--dtype", "auto"], True, True),
        (["--model", "m", "--dtype", "auto"], False, False),
        (["--model", "m", "--dtype", "bfloat16"], True, False),  # what the user has chosen
        (["--model", "auto"], True, False),
    ],
    ids=["slow", "fast", "chosen", "a model of that name"],
)
def test_it_is_said_where_the_type_is_left_to_vllm(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], slow: bool, said: bool
) -> None:
    monkeypatch.setattr(api_server, "is_slow_in_bfloat16", lambda: slow)
    assert api_server.is_left_slow(argv) is said
