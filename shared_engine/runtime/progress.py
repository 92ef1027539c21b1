"""How far a start has come, read off vLLM's log. Pure; standard library only.

vLLM reports nothing else while it starts; its lines and their order were read off vLLM 0.32.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from operator import itemgetter
from typing import Any


class StartPhase(str, Enum):
    """The phases of a start, in order."""

    IMPORT = "import"  # the launcher imports vLLM; skipped when it comes back from standby
    QUEUED = "queued"  # another engine starts on the same device, or must leave it first
    CONFIG = "config"  # vLLM reads the model's config and starts its processes
    DOWNLOAD = "download"  # the model's files are found on this disk, or come from the hub: vLLM makes no difference
    WEIGHTS = "weights"  # weights are loaded
    COMPILE = "compile"  # torch.compile; skipped with enforce_eager
    KV_CACHE = "kv_cache"  # the KV cache is made, kernels are warmed up
    GRAPHS = "graphs"  # CUDA graphs are captured; skipped with enforce_eager
    SERVER = "server"  # the HTTP server comes up
    WAKE = "wake"  # a sleeping engine's weights go back to the GPU


_WORDS = {
    StartPhase.IMPORT: "importing vLLM",
    StartPhase.QUEUED: "waiting for the device",
    StartPhase.CONFIG: "reading the model's config",
    StartPhase.DOWNLOAD: "fetching the model's files",
    StartPhase.WEIGHTS: "loading weights",
    StartPhase.COMPILE: "compiling",
    StartPhase.KV_CACHE: "making the KV cache and warming up",
    StartPhase.GRAPHS: "capturing CUDA graphs",
    StartPhase.SERVER: "starting the HTTP server",
    StartPhase.WAKE: "waking up",
}
_ORDER = {phase: number for number, phase in enumerate(StartPhase)}

# What a log has when a phase has begun.
_LINES: tuple[tuple[str, StartPhase], ...] = (
    ("non-default args: ", StartPhase.CONFIG),
    ("Resolved architecture: ", StartPhase.CONFIG),
    ("Initializing a V1 LLM engine", StartPhase.CONFIG),
    ("Starting to load model ", StartPhase.DOWNLOAD),
    ("Loading model from scratch...", StartPhase.DOWNLOAD),
    ("Time spent downloading weights", StartPhase.WEIGHTS),
    ("Filesystem type for checkpoints", StartPhase.WEIGHTS),
    ("Loading weights took", StartPhase.WEIGHTS),
    # Not any "torch.compile": "Enforce eager set, disabling torch.compile" comes before the weights.
    ("Starting torch.compile", StartPhase.COMPILE),
    ("Dynamo bytecode transform time", StartPhase.COMPILE),
    ("Directly load AOT compilation", StartPhase.COMPILE),
    ("Directly load the compiled graph", StartPhase.COMPILE),
    ("Warming up model for the compilation", StartPhase.COMPILE),
    ("Available KV cache memory: ", StartPhase.KV_CACHE),
    ("memory for KV Cache as specified", StartPhase.KV_CACHE),
    ("GiB for KV cache on node", StartPhase.KV_CACHE),
    ("KV cache size: ", StartPhase.KV_CACHE),
    ("init engine (profile, ", StartPhase.SERVER),
    ("Supported tasks: ", StartPhase.SERVER),
    ("Starting vLLM server on ", StartPhase.SERVER),
)
# tqdm's bars. With the bracket after the total, or a text that ends within "3/80" would be read as 3/8. Each begins
# with a plain word and is bounded, so that a search is fast whatever stands in the log.
_COUNT = r"\|\s{0,9}(?P<done>\d{1,9})/(?P<total>\d{1,9}) \["
_BARS: tuple[tuple[re.Pattern[str], StartPhase], ...] = tuple(
    (re.compile(pattern + _COUNT), phase)
    for pattern, phase in (
        (r"Fetching \d{1,9} files:(?P<detail>)[^|\r\n]{1,20}\|[^|\r\n]{0,300}", StartPhase.DOWNLOAD),
        # Every loader in vLLM's weight_utils.py names itself another way, in one format.
        (r"oading (?P<detail>)[^|:\r\n]{1,100}:[^|\r\n]{1,20}% Completed ", StartPhase.WEIGHTS),
        (
            r"Capturing [\w -]{0,60}CUDA graphs(?: \((?P<detail>[^()|\r\n]{0,60})\))?:[^|\r\n]{1,20}\|[^|\r\n]{0,300}",
            StartPhase.GRAPHS,
        ),
    )
)
_PENDING_CHARACTERS = 1000


@dataclass(frozen=True)
class Progress:
    """Where a start is.

    Attributes:
        phase: see StartPhase.
        done: steps of the phase that are done, such as weight files loaded; 0 where nobody counts.
        total: steps of the phase; 0 where nobody counts, or the number is not known.
        unit: ``B`` where these are bytes.
        detail: what it waits for, in words.
        since: when the phase began, seconds since the epoch.
    """

    phase: StartPhase
    done: int = 0
    total: int = 0
    detail: str = ""
    since: float = 0.0
    unit: str = ""

    def __str__(self) -> str:
        count = f" {self.done}/{self.total}" if self.total and not self.unit else ""
        return f"{_WORDS[self.phase]}{count}{f' ({self.detail})' if self.detail else ''}"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "phase": self.phase.value}


class ProgressReader:
    """Follows the log of one start; never goes back, as several workers write to one log."""

    def __init__(self, phase: StartPhase) -> None:
        self.begin(phase)

    def begin(self, phase: StartPhase) -> None:
        """Another start, or a wake, begins."""
        self._pending = ""
        self.progress = Progress(phase, since=time.time())
        self._counted = [""]
        self._took_s: dict[str, float] = {}
        self._added_until = self.progress.since

    def enter(self, phase: StartPhase, detail: str = "") -> None:
        """A phase that is not read off the log, and with which the log of a server may begin."""
        self._pending = ""
        self._enter(Progress(phase, detail=detail, since=time.time()))

    def took_s(self) -> dict[str, float]:
        """Seconds that each phase has taken so far."""
        self._add_up(time.time())
        return dict(self._took_s)

    def _enter(self, progress: Progress) -> None:
        self._add_up(progress.since)
        self.progress = progress
        self._counted = [progress.detail]

    def _add_up(self, until: float) -> None:
        phase = self.progress.phase.value
        self._took_s[phase] = self._took_s.get(phase, 0.0) + max(0.0, until - self._added_until)
        self._added_until = until

    def note_fetched(self, fetched_bytes: int, whole: tuple[int, int] | None = None) -> None:
        """So many bytes of the model have come from the hub since the start began.

        Args:
            whole: the bytes of the download that are here, and those of all of it, where that is known.
        """
        if fetched_bytes <= 0 or self.progress.phase not in (StartPhase.CONFIG, StartPhase.DOWNLOAD):
            return
        if self.progress.phase is StartPhase.CONFIG:
            self._enter(Progress(StartPhase.DOWNLOAD, since=time.time()))
        if whole is not None and whole[0] < whole[1]:
            done, total = whole
            self.progress = replace(self.progress, done=done, total=total, unit="B", detail=_share(done, total))
        elif not self.progress.unit:  # with one: the next files have not begun yet
            self.progress = replace(self.progress, detail=f"{_size(fetched_bytes)} so far")

    def feed(self, text: str) -> bool:
        """Read some of the log; True when the progress is another one now."""
        if self._rank() >= _ORDER[StartPhase.SERVER]:
            return False
        before = self.progress
        # The line that is still being written is read as well: tqdm ends a line when it begins the next.
        text = self._pending + text
        for _, phase, groups in sorted(self._signs(text), key=itemgetter(0)):
            self._advance(phase, int(groups.get("done", 0)), int(groups.get("total", 0)), groups.get("detail") or "")
        line_start = max(text.rfind("\n"), text.rfind("\r")) + 1
        self._pending = text[max(line_start, len(text) - _PENDING_CHARACTERS) :]
        return self.progress != before

    def _signs(self, text: str) -> Iterator[tuple[int, StartPhase, dict[str, str]]]:
        """Where what stands. A flood must cost little: a word is searched only as long as it would be news."""
        rank = self._rank()
        for words, phase in _LINES:
            if _ORDER[phase] > rank and (position := text.find(words)) >= 0:
                yield position, phase, {}
        for pattern, phase in _BARS:
            if _ORDER[phase] >= rank:
                yield from ((found.start(), phase, found.groupdict()) for found in pattern.finditer(text))

    def _rank(self) -> int:
        return _ORDER[self.progress.phase]

    def _advance(self, phase: StartPhase, done: int, total: int, detail: str) -> None:
        now = self.progress
        if phase is StartPhase.GRAPHS and self._rank() < _ORDER[StartPhase.KV_CACHE]:
            return  # vLLM captures a few to measure their memory, before the KV cache has a size
        if _ORDER[phase] > self._rank():
            self._enter(Progress(phase, done, total, detail, since=time.time()))
        elif phase is not now.phase or not total:
            return
        elif detail not in self._counted:
            self._counted.append(detail)  # the next kind of graphs has a count of its own
            self.progress = replace(now, done=done, total=total, detail=detail)
        elif detail == now.detail and (total, done) > (now.total, now.done):
            self.progress = replace(now, done=done, total=total)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _share(done: int, total: int) -> str:
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total >= 1e9 else f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
