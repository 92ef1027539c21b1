"""The releases of vLLM that were read and tried, and what differs between them: the one place for that.

``launcher/launcher.py`` runs alone in vLLM's Python, so it holds a copy of one column (FORK_VERSIONS); pyproject.toml
holds the version to install. tests/unit/test_vllm_versions.py holds all of them together. Where vLLM's words, routes
and modules stand is listed in docs/vllm-versions.md.
"""

from __future__ import annotations

from dataclasses import dataclass

INSTALLED = "0.32.0"
"""What ``vllm-local install`` installs, and the tests run on."""


@dataclass(frozen=True)
class Release:
    """One minor release.

    Attributes:
        minor: such as ``0.32``.
        can_fork: its start was tried with processes forked from one that has imported vLLM.
        counts_tokens: its way from messages to tokens was read, and ours gives the same; another counts itself.
    """

    minor: str
    can_fork: bool
    counts_tokens: bool


RELEASES = (
    Release("0.32", can_fork=True, counts_tokens=True),
    Release("0.33", can_fork=True, counts_tokens=False),
)
_UNKNOWN = Release("", can_fork=False, counts_tokens=False)


def release_of(version: str) -> Release:
    """What is known of ``version``, such as ``0.32.1+cpu``; of an unknown release nothing is taken for granted."""
    return next((release for release in RELEASES if version.startswith(release.minor + ".")), _UNKNOWN)
