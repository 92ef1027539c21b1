"""What a batch shows while it runs, and says at its end."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from shared_engine.cli.batch.lines import Answer
from shared_engine.cli.terminal import can_draw
from shared_engine.request.progress_bar import new_bar, redraw

WINDOW_S = 60.0
TICK_S = 0.5


def duration(seconds: float) -> str:
    """As ``0:07``, ``12:34`` or ``2:03:04``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def many(count: int, unit: str) -> str:
    """As ``1 line``, or ``1,234 lines``."""
    return f"{count:,} {unit}" if count == 1 else f"{count:,} {unit}s"


@dataclass
class Counts:
    """What was done.

    Attributes:
        rows: of the input; None where it was not counted.
        before: answered by runs before this one.
        answered: by this run, by an answer or an error.
        failed: of those, by an error.
        failed_before: errors of runs before this one, which stand.
        seconds: from the moment the engine was ready.
        stopped: why not all rows were answered; None where they were.
        is_interrupted: it was by Ctrl-C or SIGTERM.
        is_resumable: the same command goes on from there.
    """

    rows: int | None = None
    before: int = 0
    answered: int = 0
    failed: int = 0
    failed_before: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    is_interrupted: bool = False
    is_resumable: bool = False

    def add(self, answer: Answer) -> None:
        self.answered += 1
        self.failed += answer.is_error
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    @property
    def errors(self) -> int:
        """Rows that are answered by an error."""
        return self.failed + self.failed_before

    @property
    def tokens(self) -> int:
        """Those that were generated; of prompts where none are, as for embeddings."""
        return self.completion_tokens or self.prompt_tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_json(self, output: str) -> dict[str, Any]:
        """For programs."""
        derived = {
            "is_complete": self.stopped is None,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "output": output,
        }
        return {**asdict(self), **derived}

    def lines(self, output: str, unit: str) -> list[str]:
        """For people."""
        done = self.before + self.answered
        total = many(done, unit) if self.rows is None else f"{done:,} of {many(self.rows, unit)}"
        before = f" ({self.before:,} before)" if self.before else ""
        said = [f"{total} answered{before}: {output}"]
        if self.answered:
            tokens = f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens"
            said.append(f"this run: {duration(self.seconds)}, {tokens}, {self.tokens_per_second:,.0f} tokens/s")
        if self.errors:
            said.append(f"{many(self.errors, unit)} with an error; to ask again: --retry-errors")
        if self.stopped is not None:
            said.append(f"stopped: {self.stopped}")
            if self.is_resumable:
                said.append("what is answered is kept; the same command goes on from there")
        return said


class Bar:
    """Rows, tokens a second and the time left, over the last minute; nothing where stderr is not a terminal."""

    def __init__(self, counts: Counts, unit: str) -> None:
        self._counts, self._unit = counts, unit
        self._bar: Any = None
        self._samples: deque[tuple[float, int, int]] = deque()

    def tick(self, now: float | None = None) -> None:
        """Draw it as things stand now."""
        now = time.monotonic() if now is None else now
        counts = self._counts
        self._samples.append((now, counts.answered, counts.tokens))
        while now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        look: dict[str, Any] = {
            "bar_format": self.text(),
            "done": counts.before + counts.answered,
            "total": counts.rows,
        }
        if self._bar is None:
            self._bar = new_bar(**look) if can_draw(sys.stderr) else None
        else:
            redraw(self._bar, **look)

    def text(self) -> str:
        """In tqdm's format, which puts the bar itself into it."""
        counts = self._counts
        (began, rows, tokens), (now, last_rows, last_tokens) = self._samples[0], self._samples[-1]
        elapsed_s = now - began
        done = counts.before + counts.answered
        failed = f", {counts.failed:,} failed" if counts.failed else ""
        if counts.rows is None:
            return f"{done:,} {self._unit}s{failed} {{bar}} {self._speed(last_tokens - tokens, elapsed_s)}"
        rate = (last_rows - rows) / elapsed_s if elapsed_s else 0.0
        left = f"{duration((counts.rows - done) / rate)} left" if rate else "- left"
        speed = self._speed(last_tokens - tokens, elapsed_s)
        return f"{done:,} of {counts.rows:,} {self._unit}s{failed} |{{bar}}| {speed}, {left}"

    def _speed(self, tokens: int, elapsed_s: float) -> str:
        return f"{tokens / elapsed_s if elapsed_s else 0.0:,.0f} tokens/s"

    def close(self) -> None:
        """Erase it."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
