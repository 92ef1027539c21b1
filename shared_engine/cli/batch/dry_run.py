"""What a batch would cost, without an answer written: tokens counted, time estimated from a sample."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shared_engine.answer_file.out_file import OutFile
from shared_engine.cli.batch.asking import Asking
from shared_engine.cli.batch.job import Job
from shared_engine.cli.batch.lines import InvalidLineError, Line, OpenAILine
from shared_engine.cli.batch.output import output_of
from shared_engine.cli.batch.report import Bar, Counts, duration, many
from shared_engine.cli.batch.rows import Row
from shared_engine.cli.batch.survey import Survey
from shared_engine.engine import Engine
from shared_engine.errors import InvalidInputError, RequestRejectedError
from shared_engine.request.batches import gather
from shared_engine.request.bodies import max_tokens_field, prompt_variables
from shared_engine.request.checks import check_messages, check_text
from shared_engine.request.routes import CHAT, COMPLETIONS, EMBEDDINGS

# A body of OpenAI's is for the server to check; where it can't be read here, it is refused there.
_OF_ONE_ROW = (
    InvalidLineError, InvalidInputError, RequestRejectedError, TypeError, ValueError, AttributeError, LookupError,
    RecursionError,
)  # fmt: skip

SAMPLE = 32
MAX_SHOWN = 5
TICK_ROWS = 50


@dataclass
class Estimate:
    """What the rows that are not answered yet would cost.

    Attributes:
        rows: of the input.
        answered: already in the output.
        invalid: rows that can't be asked, or whose prompt the chat template refuses.
        shown: why, of the first of those.
        too_long: rows whose prompt alone fills the model's context.
        uncounted: rows of routes whose tokens are not counted (rerank, score, responses).
        prompt_tokens: of all rows that were counted.
        max_completion_tokens: the most that may be generated, of the rows that limit it.
        unlimited: rows that don't.
        sampled: how many rows were asked for the estimate.
        sample_s: how long that took, all at once, with the engine ready.
        seconds: for all rows; None without a sample.
    """

    rows: int = 0
    answered: int = 0
    invalid: int = 0
    shown: list[str] = field(default_factory=list)
    too_long: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    max_completion_tokens: int = 0
    unlimited: int = 0
    sampled: int = 0
    sample_s: float = 0.0
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def lines(self, unit: str) -> list[str]:
        """For people."""
        said = [f"{self.rows - self.answered:,} of {many(self.rows, unit)} to answer"]
        most = f", at most {self.max_completion_tokens:,} completion tokens"
        if self.unlimited:
            most += f" and those of {many(self.unlimited, unit)} without max_tokens"
        said.append(f"{self.prompt_tokens:,} prompt tokens{most}")
        if self.uncounted:
            said.append(f"{many(self.uncounted, unit)} whose tokens are not counted (rerank, score, responses)")
        if self.too_long:
            said.append(f"{many(self.too_long, unit)} will have an error: the prompt fills the model's context")
        if self.invalid:
            said.append(f"{many(self.invalid, unit)} will have an error:")
            said += [f"  {each}" for each in self.shown]
            said += ["  ..."] if self.invalid > len(self.shown) else []
        if self.seconds is None:
            said.append("time: not estimated, as no sample was asked")
        else:
            said.append(
                f"about {duration(self.seconds)}: {many(self.sampled, unit)} from all over the input, asked together, "
                f"took {self.sample_s:.1f} s"
            )
        return said


def estimate(engine: Engine, job: Job, sample: int = SAMPLE) -> Estimate:
    """Count the tokens of all rows that are not answered, and ask some of them. Nothing is written.

    Args:
        sample: how many are asked; 0: none, and no time is estimated.

    Raises:
        VLLMError: the input or the output can't be read, or no row can be answered.
    """
    if not job.rows.is_file:
        raise InvalidInputError("a dry run reads the input more than once: give a file")
    asking = Asking(engine, job.rows, job.asked)
    survey = Survey(job.rows)
    answered = _answered(job, asking, survey)
    found = Estimate(rows=survey.rows, answered=sum(map(bool, answered)))
    left = found.rows - found.answered
    step = max(1, left // sample) if sample else 0
    sampled: list[Row] = []
    counts = Counts(rows=left)
    bar = Bar(counts, job.rows.unit)
    try:
        for position, row in enumerate(_left(job, survey, answered)):
            if position % TICK_ROWS == 0:
                counts.answered = position
                bar.tick()
            is_valid = _count(found, engine, job, asking, row)
            if is_valid and step and position % step == 0 and len(sampled) < sample:
                sampled.append(row)
    finally:
        bar.close()
    if sampled:
        asked = asyncio.run(_ask(engine, asking, sampled, job.max_inflight))
        found.sampled, found.sample_s = len(sampled), asked
        found.seconds = found.sample_s / found.sampled * left
    return found


def _answered(job: Job, asking: Asking, survey: Survey) -> bytes:
    if not Path(job.output).is_file():
        return b""
    output = output_of(job.output, job.rows, asking.hows, survey)
    assert isinstance(output, OutFile)
    output.close()
    return output.without_errors() if job.retry_errors else bytes(output.answered)


def _left(job: Job, survey: Survey, answered: bytes) -> Iterator[Row]:
    for row in job.rows.rows():
        if row.number > len(survey.digests):
            return
        if row.number > len(answered) or not answered[row.number - 1]:
            yield row


async def _ask(engine: Engine, asking: Asking, rows: Sequence[Row], wished: int | None) -> float:
    try:
        await engine.awarmup()
        began = time.monotonic()
        with engine.concurrency(len(rows), wished) as limit:
            await gather(rows, asking.answer, limit, return_exceptions=False)
        return time.monotonic() - began
    finally:
        await engine.aclose()


def _count(found: Estimate, engine: Engine, job: Job, asking: Asking, row: Row) -> bool:
    """Add a row; False if it will have an error.

    Raises:
        VLLMError: what every other row would meet too.
    """
    try:
        body = _body_of(engine, job, asking.parse(row))
        most = _most_completion(body) if body.route in _GENERATES else 0
        tokens = _prompt_tokens(engine, body)
    except _OF_ONE_ROW as exc:
        found.invalid += 1
        if len(found.shown) < MAX_SHOWN:
            found.shown.append(f"{job.rows.unit} {row.number} {exc}")
        return False
    if tokens is None:
        found.uncounted += 1
        return True
    found.prompt_tokens += tokens
    window = engine.context_window
    if window is not None and tokens >= window + (body.route not in _GENERATES):
        found.too_long += 1
        return False
    if most is None:
        found.unlimited += 1
    else:
        found.max_completion_tokens += most
    return True


class _Body(NamedTuple):
    route: str
    fields: dict[str, Any]


_GENERATES = (CHAT, COMPLETIONS)
MAX_TOKENS_OF_COMPLETIONS = 16
"""vLLM's default for /v1/completions, as OpenAI's."""


def _body_of(engine: Engine, job: Job, line: Line) -> _Body:
    if isinstance(line, OpenAILine):
        return _Body(line.url, msgspec.json.decode(line.body))
    parameters, params = dict(line.parameters), job.asked.params
    if line.messages is None and job.asked.is_raw:
        request = engine._text_request(line.prompt or "", params, parameters)
        # The Engine asks for as many tokens as fit where no number is given.
        unlimited = {"max_tokens": None} if request.needs_max_tokens else {}
        return _Body(COMPLETIONS, {**unlimited, **msgspec.json.decode(request.body)})
    tools, tool_choice = parameters.pop("tools", None), parameters.pop("tool_choice", None)
    messages = job.asked.messages(line.prompt or "") if line.messages is None else line.messages
    request = engine._chat_request(messages, engine._params(params, parameters), tools, tool_choice)
    return _Body(CHAT, msgspec.json.decode(request.body))


def _prompt_tokens(engine: Engine, body: _Body) -> int | None:
    """None for what is not counted here."""
    fields = body.fields
    if body.route == CHAT:
        messages = check_messages(fields.get("messages"))
        return engine.count_tokens(
            messages, tools=fields.get("tools"), chat_template_kwargs=prompt_variables(fields) or None
        )
    if body.route not in (COMPLETIONS, EMBEDDINGS):
        return None
    prompts = fields.get("prompt" if body.route == COMPLETIONS else "input")
    if isinstance(prompts, list) and not _is_tokens(prompts):
        return sum(_count_prompt(engine, each) for each in prompts)
    return None if prompts is None else _count_prompt(engine, prompts)


def _is_tokens(prompt: list[Any]) -> bool:
    return all(isinstance(token, int) for token in prompt)


def _count_prompt(engine: Engine, prompt: Any) -> int:
    if isinstance(prompt, list) and _is_tokens(prompt):
        return len(prompt)
    return engine.count_tokens(check_text(prompt, "a prompt"))


def _most_completion(body: _Body) -> int | None:
    """How many tokens may be generated; None where the row does not limit them."""
    fields, name = body.fields, max_tokens_field(body.fields)
    if name is None and (body.route == CHAT or "max_tokens" in fields):
        return None
    most = MAX_TOKENS_OF_COMPLETIONS if name is None else fields[name]
    prompts = fields.get("prompt")
    many = len(prompts) if isinstance(prompts, list) and not _is_tokens(prompts) else 1
    return int(most) * int(fields.get("n") or 1) * many  # vLLM takes "10" for a number
