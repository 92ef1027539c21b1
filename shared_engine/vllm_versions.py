"""The releases of vLLM that are supported, and what differs between them: the one place for that.

The launcher reads it in vLLM's own Python, so it needs the standard library only. pyproject.toml holds the version to
install, and tests/unit/test_vllm_versions.py compares. Which files hold vLLM's words, that are the same in all of
these, is listed in docs/versions.md; `make test-versions` runs each release.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

INSTALLED = "0.32.0"
"""What ``vllm-local install`` installs, and the tests run on."""


@dataclass(frozen=True)
class Release:
    """One minor release.

    Attributes:
        minor: such as ``0.32``.
        api_server: the module that has ``run_server``.
        cli_args: the module that has ``make_arg_parser`` and ``validate_parsed_serve_args``.
        startup: the module that has ``cli_env_setup``.
        chat_utils: the module that has ``parse_chat_messages``.
        lacks_args: names of ``engine_args`` that later releases have.
        lacks_parsers: tool-call and reasoning parsers that later releases have.
        lost_quantizations: methods that earlier releases have.
        limits_stop: the server takes as many strings of ``stop`` as VLLM_MAX_STOP_STRINGS says, 4 by default.
    """

    minor: str
    api_server: str = "vllm.entrypoints.launchers.api_server.entry"
    cli_args: str = "vllm.entrypoints.launchers.cli_args"
    startup: str = "vllm.entrypoints.serve.utils.api_utils"
    chat_utils: str = "vllm.renderers.chat_utils"
    lacks_args: tuple[str, ...] = ()
    lacks_parsers: tuple[str, ...] = ()
    lost_quantizations: tuple[str, ...] = ()
    limits_stop: bool = True

    @property
    def numbers(self) -> tuple[int, int]:
        major, minor = self.minor.split(".")
        return int(major), int(minor)


_LOST = ("bitsandbytes",)
# Up to 0.28 the API server was one file.
_OLD_SERVER, _OLD_CLI_ARGS = "vllm.entrypoints.openai.api_server", "vllm.entrypoints.openai.cli_args"
_OLD_CHAT = "vllm.entrypoints.chat_utils"  # up to 0.31

_LACKS = ("max_num_queued_reqs", "tool_strict_level")
RELEASES = (
    Release("0.26", _OLD_SERVER, _OLD_CLI_ARGS, chat_utils=_OLD_CHAT, lacks_args=_LACKS,
            lacks_parsers=("deepseek_v41", "kimi_k3", "ling3"), limits_stop=False),
    Release("0.27", _OLD_SERVER, _OLD_CLI_ARGS, chat_utils=_OLD_CHAT, lacks_args=_LACKS,
            lacks_parsers=("deepseek_v41", "kimi_k3", "ling3")),
    Release("0.28", _OLD_SERVER, _OLD_CLI_ARGS, chat_utils=_OLD_CHAT, lacks_args=_LACKS,
            lacks_parsers=("deepseek_v41",), lost_quantizations=_LOST),
    Release("0.29", chat_utils=_OLD_CHAT, lacks_args=("tool_strict_level",), lost_quantizations=_LOST),
    Release("0.30", chat_utils=_OLD_CHAT, lacks_args=("tool_strict_level",), lost_quantizations=_LOST),
    Release("0.31", chat_utils=_OLD_CHAT, lost_quantizations=_LOST),
    Release("0.32", lost_quantizations=_LOST),
    Release("0.33", cli_args="vllm.entrypoints.common.cli_args", startup="vllm.entrypoints.common.startup",
            lost_quantizations=_LOST),
)  # fmt: skip
"""Oldest first."""
RANGE = f"{RELEASES[0].minor} to {RELEASES[-1].minor}"


class Age(Enum):
    """A version, compared with RELEASES."""

    TOO_OLD = "too old"
    SUPPORTED = "supported"
    NEWER = "newer"  # or one that nobody can tell: a build of somebody's own sources


def age_of(version: str) -> Age:
    """Where ``version``, such as ``0.32.1+cpu``, stands. One of a working copy without tags counts as newer."""
    numbers = _numbers(version)
    if numbers is None or numbers > RELEASES[-1].numbers:
        return Age.NEWER
    return Age.TOO_OLD if numbers < RELEASES[0].numbers else Age.SUPPORTED


def release_of(version: str) -> Release:
    """What to do with ``version``: as with its release; with an unknown one as with the newest."""
    numbers = _numbers(version)
    return next((release for release in RELEASES if release.numbers == numbers), RELEASES[-1])


def matter_of_version(version: str) -> str | None:
    """What is wrong with ``version`` as such, in words; None for a supported one."""
    age = age_of(version)
    if age is Age.TOO_OLD:
        return f"vLLM {version} is too old: {RANGE} are supported"
    if age is Age.NEWER:
        return f"vLLM {version} is newer than what vllm-local was tried with ({RANGE})"
    return None


def _numbers(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)(?!\d*\.?dev)", version)
    return (int(found[1]), int(found[2])) if found else None
