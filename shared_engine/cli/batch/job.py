"""The batch: rows in, a bounded number in flight, answers out in the order that is wanted. Resumes by itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from shared_engine.answer_file.out_file import OutFile, OutputError
from shared_engine.cli.batch.asking import Asked, Asking
from shared_engine.cli.batch.lines import Answer
from shared_engine.cli.batch.output import Output, output_of
from shared_engine.cli.batch.report import TICK_S, Bar, Counts
from shared_engine.cli.batch.rows import Input, Row
from shared_engine.cli.batch.survey import Survey
from shared_engine.engine import Engine
from shared_engine.errors import InvalidInputError, VLLMError
from shared_engine.request.batches import crew
from shared_engine.request.threads import in_a_thread

HELD_PER_SLOT = 16
"""For the order of the input: so many answers are held back, for each request in flight, until one before is there."""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        output: a path, or ``-`` for the standard output.
        order: of the answers: as the rows, or as they are done.
        max_inflight: requests at once; None for what the engine takes.
        retry_errors: rows that a run before this one answered by an error are asked again.
    """

    rows: Input
    output: str
    asked: Asked = field(default_factory=Asked)
    order: Literal["input", "done"] = "input"
    max_inflight: int | None = None
    retry_errors: bool = False


def run_job(engine: Engine, job: Job) -> Counts:
    """Answer all rows that are not answered yet, or as many as can be.

    Raises:
        VLLMError: it can't begin.
        BrokenPipeError: the reader of the output has left.
    """
    asking = Asking(engine, job.rows, job.asked)
    survey = Survey(job.rows) if job.rows.is_file else None
    output = output_of(job.output, job.rows, asking.hows, survey)
    counts = Counts(
        rows=None if survey is None else survey.rows,
        is_resumable=survey is not None and isinstance(output, OutFile),
    )
    try:
        if isinstance(output, OutFile):
            output.begin()
            if job.retry_errors and output.errors:
                output.drop_errors()
            counts.before, counts.failed_before = output.before, output.errors
        elif job.retry_errors:
            raise InvalidInputError(f"{job.output} is not a file: there are no errors in it to ask again")
        if counts.rows is None or counts.before < counts.rows:
            last = None if survey is None else len(survey.digests)
            asyncio.run(_Run(engine, job, asking, output, counts, last).run())
        if counts.stopped is None and job.order == "input" and isinstance(output, OutFile) and not output.is_sorted:
            output.sort()
    except OutputError as exc:
        counts.stopped = str(exc)
    finally:
        output.close()
    return counts


class _Run:
    def __init__(
        self, engine: Engine, job: Job, asking: Asking, output: Output, counts: Counts, last: int | None
    ) -> None:
        self._engine, self._asking, self._output, self._counts = engine, asking, output, counts
        self._wished = job.max_inflight
        self._is_ordered = job.order == "input"
        self._rows = self._missing(job.rows, last)
        self._waits_for_rows = not job.rows.is_file
        self._bar = Bar(counts, job.rows.unit)
        self._reading = asyncio.Lock()
        self._has_room = asyncio.Event()
        self._taken = self._written = 0
        self._held: dict[int, tuple[Row, Answer]] = {}

    def _missing(self, rows: Input, last: int | None) -> Iterator[Row]:
        answered = self._output.answered if isinstance(self._output, OutFile) else b""
        for row in rows.rows():
            if last is not None and row.number > last:
                return  # the input has grown since it was surveyed: the next run sees to that
            if row.number > len(answered) or not answered[row.number - 1]:
                yield row

    async def run(self) -> None:
        """Answer the rows; the counts say how far that went."""
        main = asyncio.current_task()
        assert main is not None
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: nobody sends us signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
        try:
            await self._answer_all()
        except asyncio.CancelledError:
            self._counts.stopped, self._counts.is_interrupted = "interrupted", True
        except VLLMError as exc:
            self._counts.stopped = str(exc)
        finally:
            self._bar.close()
            await self._engine.aclose()

    async def _answer_all(self) -> None:
        await self._engine.awarmup()
        self._asking.look_again()  # what the output says of its lines is then the same in the next run
        began = time.monotonic()
        ticker = asyncio.ensure_future(self._tick())
        try:
            with self._engine.concurrency(sys.maxsize, self._wished) as limit:
                await crew(self._step, limit)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            self._counts.seconds = time.monotonic() - began
            self._write_held()

    async def _tick(self) -> None:
        while True:
            self._bar.tick()
            await asyncio.sleep(TICK_S)

    async def _step(self) -> bool:
        """Answer the next row; False where there is none."""
        async with self._reading:
            while self._taken - self._written >= self._most_held():
                self._has_room.clear()
                await self._has_room.wait()
            row = await in_a_thread(self._next) if self._waits_for_rows else self._next()
            if row is None:
                return False
            place = self._taken
            self._taken += 1
        answer = await self._asking.answer(row)
        if not self._is_ordered:
            self._write(row, answer)
            return True
        self._held[place] = row, answer
        while self._written in self._held:
            self._write(*self._held[self._written])
            del self._held[self._written - 1]
        return True

    def _most_held(self) -> int:
        return (self._wished or self._engine.max_concurrency) * HELD_PER_SLOT

    def _next(self) -> Row | None:
        return next(self._rows, None)

    def _write(self, row: Row, answer: Answer) -> None:
        self._output.append(answer.line, row.number)
        self._written += 1
        self._counts.add(answer)
        self._has_room.set()

    def _write_held(self) -> None:
        """Of a batch that ends early: what is answered is kept, out of order. A file is sorted when it is complete."""
        if isinstance(self._output, OutFile):
            for place in sorted(self._held):
                self._write(*self._held[place])
        self._held.clear()
