"""One row is asked, and becomes one line of the output; or the whole batch has to stop."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shared_engine.answer_file.identity import Identity, digest_of, how_digest
from shared_engine.cli.batch.lines import (
    Answer,
    InvalidLineError,
    Line,
    OpenAILine,
    PlainLine,
    failed_answer,
    invalid_answer,
    openai_answer,
    parse_line,
    plain_answer,
)
from shared_engine.cli.batch.rows import Input, Row
from shared_engine.engine import Engine
from shared_engine.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    InvalidInputError,
    ServerUnreachableError,
    SettingsError,
    VLLMError,
)
from shared_engine.machine.home import expanded
from shared_engine.params import GenerationParams
from shared_engine.request.answering_model import answering_model
from shared_engine.request.checks import Message
from shared_engine.request.forwarding import ForwardedRequest, Forwarding

logger = logging.getLogger(__name__)

_JSON = (("Content-Type", "application/json"),)
_UNAUTHORIZED = 401
MANY_FAULTS = 16
"""Errors of ours in so many rows, and no row without: every other one would meet them."""
_OF_ALL_ROWS = (AuthenticationError, ServerUnreachableError, SettingsError)


def ends_batch(error: Exception) -> bool:
    """True for what every other row would meet too: no engine, no server, no key; nor memory, files or sockets."""
    if isinstance(error, EngineError):
        return not isinstance(error, EngineDiedError | EngineBusyError)
    return isinstance(error, _OF_ALL_ROWS if isinstance(error, VLLMError) else (OSError, MemoryError))


@dataclass(frozen=True)
class Asked:
    """How rows are asked.

    Attributes:
        params: of plain rows.
        system: a message before each prompt.
        is_raw: prompts are continued as they are, without the chat template.
    """

    params: GenerationParams = field(default_factory=GenerationParams)
    system: str | None = None
    is_raw: bool = False

    def __post_init__(self) -> None:
        if self.is_raw and self.system is not None:
            raise InvalidInputError("a system message needs the chat template: it can't go with raw prompts")

    def messages(self, prompt: str) -> list[Message]:
        """A prompt as a conversation."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]


def _model_of(model: str | None) -> str | None:
    """One name for one folder, wherever this runs."""
    path = expanded(model or "")
    return str(path.resolve()) if model is not None and path.is_dir() else model


class Asking:
    """Asks an engine. No error of a row is raised: it becomes the row's answer."""

    def __init__(self, engine: Engine, rows: Input, asked: Asked) -> None:
        self._engine, self._input, self._asked = engine, rows, asked
        self._forwarding = Forwarding(engine._requests.endpoint, engine.settings)
        self._faults: Counter[type[Exception]] = Counter()
        self._can_ask = False

    @cached_property
    def hows(self) -> tuple[str, str]:
        """What the ids of the output say of how its lines were asked; and what they said before they told a model's
        files and settings, and the adapter's.
        """
        engine, asked = self._engine, self._asked
        settings = engine.settings
        name = _model_of(settings.model)
        before = {
            "model": name,
            "defaults": settings.sampling_defaults,
            "reproducible": settings.reproducible,
            "params": asked.params.given,
            "system": asked.system,
            "raw": asked.is_raw,
            "prompt_column": self._input.prompt_column,
        }
        answering = answering_model(settings, name, engine._defaults.merged(asked.params.given).lora)
        return how_digest({**before, **answering}), how_digest(before)

    def look_again(self) -> None:
        """The model's files may be here only now: its engine has started."""
        self.__dict__.pop("hows", None)

    def parse(self, row: Row) -> Line:
        """
        Raises:
            InvalidLineError: the row can't be asked.
            SettingsError: it is in OpenAI's format, and there are parameters for plain rows.
        """
        line = parse_line(row.text, self._input.prompt_column, is_table=self._input.is_table)
        asked = self._asked
        if isinstance(line, OpenAILine) and (asked.params.given or asked.system is not None or asked.is_raw):
            raise SettingsError(
                f"line {row.number} is in OpenAI's format, whose body is sent as it is: parameters, --system and --raw "
                "are for plain lines"
            )
        return line

    async def answer(self, row: Row) -> Answer:
        """
        Raises:
            Exception: no row can be answered; see ``ends_batch``.
        """
        answer_id = str(Identity(row.number, digest_of(row.text), self.hows[0]))
        try:
            line = self.parse(row)
        except InvalidLineError as exc:
            return invalid_answer(answer_id, row.number, row.text, self._input.unit, exc)
        try:
            if isinstance(line, OpenAILine):
                answer = await self._forward(answer_id, line)
            else:
                answer = await self._generate(answer_id, row, line)
            self._can_ask = True
        except Exception as exc:
            if ends_batch(exc):
                raise
            if isinstance(exc, VLLMError):
                self._can_ask = True
            else:
                self._note_fault(row, exc)
            answer = failed_answer(answer_id, row.number, row.text, line, exc)
        return answer

    def _note_fault(self, row: Row, error: Exception) -> None:
        """One row is no reason to lose the others.

        Raises:
            VLLMError: all rows have failed this way.
        """
        self._faults[type(error)] += 1
        if self._faults[type(error)] == 1:  # of a million rows the output has the rest
            logger.error("%s %d can't be asked", self._input.unit, row.number, exc_info=error)
        if not self._can_ask and self._faults.total() >= MANY_FAULTS:
            raise VLLMError(
                f"the first {MANY_FAULTS} {self._input.unit}s all failed by an error in vllm-local: "
                f"{type(error).__name__}: {error}"
            ) from error

    async def _forward(self, answer_id: str, line: OpenAILine) -> Answer:
        answer = await self._forwarding.forward(ForwardedRequest("POST", line.url, _JSON, line.body))
        body = b"".join([piece async for piece in answer])
        if answer.status == _UNAUTHORIZED:
            raise AuthenticationError(body.decode(errors="replace"), answer.status)
        return openai_answer(answer_id, line, answer.status, body)

    async def _generate(self, answer_id: str, row: Row, line: PlainLine) -> Answer:
        engine, asked = self._engine, self._asked
        parameters: dict[str, Any] = dict(line.parameters)
        if line.messages is not None:
            result = await engine.achat(line.messages, asked.params, **parameters)
        elif asked.is_raw:
            result = await engine.agenerate(line.prompt or "", asked.params, **parameters)
        else:
            result = await engine.achat(asked.messages(line.prompt or ""), asked.params, **parameters)
        return plain_answer(answer_id, row.number, row.text, result)
