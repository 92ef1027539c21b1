"""A chat: its engine, its conversation, and what is done with one line that was typed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine.adapting.media_errors import media_errors
from shared_engine.cli.asking.answer import Answer
from shared_engine.cli.asking.attachments import WORDING, Part, attachment, user_message, without_dropped_files
from shared_engine.cli.chat.commands import SECRET, find_command
from shared_engine.cli.chat.conversation import Conversation, Message, save
from shared_engine.cli.chat.interrupts import Interrupts
from shared_engine.cli.chat.screen import AnswerView, Screen, without_echo
from shared_engine.engine import Engine
from shared_engine.errors import ContextLengthError, EngineError, InvalidInputError, VLLMError
from shared_engine.settings import EngineSettings

WARN_FROM = 0.8
"""Of the context window: from here on the chat warns that it will be full."""

LOG_LINES = 5
"""Of an engine that did not start."""

ReadLine = Callable[[Callable[[str], None]], str]


@dataclass
class Display:
    """How answers are shown."""

    is_markdown: bool = True
    hides_thinking: bool = False
    shows_stats: bool = False


class Chat:
    """One chat at a terminal. ``run`` returns when the user leaves; errors are shown, and it goes on.

    Attributes:
        settings: of the engine; those of a call are ``parameters``.
        attached: goes with the next message.
        file: where the conversation was saved, or loaded from, last.
        rescue_file: gets the conversation when the chat is ended by a signal, as by a lost connection.
    """

    def __init__(
        self,
        settings: EngineSettings,
        parameters: dict[str, Any],
        screen: Screen,
        *,
        system: str | None = None,
        display: Display | None = None,
    ) -> None:
        self.settings = settings
        self.engine = Engine(settings)
        self.parameters = parameters
        self.screen = screen
        self.display = display or Display()
        self.conversation = Conversation(system)
        self.attached: list[Part] = []
        self.file: Path | None = None
        self.rescue_file: Path | None = None
        self.last_answer: Answer | None = None
        self.totals = Totals()
        self.history_switch: Callable[[bool], str] = lambda _: "nothing that you type is kept"
        self._interrupts = Interrupts()
        self._leaves = False

    @property
    def model_name(self) -> str:
        served = self.last_answer.model if self.last_answer is not None else ""
        name = self.settings.model or served or str(self.settings.base_url)
        return name.rstrip("/").rpartition("/")[2]

    # ---- life

    def run(self, read: ReadLine) -> None:
        with self._interrupts:
            try:
                self._begin()
                self._converse(read)
            except BaseException:  # a signal, or a fault of its own
                self._rescue()
                raise

    def _converse(self, read: ReadLine) -> None:
        while not self._leaves:
            try:
                line = read(self.screen.note)
            except EOFError:
                return
            self.handle(line)

    def _rescue(self) -> None:
        if self.rescue_file is None or not self.conversation.to_send(self.conversation.unanswered):
            return
        with contextlib.suppress(OSError):  # the terminal may be gone
            try:
                save(self.document(), self.rescue_file, may_replace=True)
            except InvalidInputError as exc:
                self.screen.error(f"the conversation is lost: {exc}")
            else:
                self.screen.note(f"the conversation is in {self.rescue_file}: /load goes on with it")

    def document(self) -> dict[str, Any]:
        """The conversation, for a file."""
        parameters = {name: value for name, value in self.parameters.items() if name not in SECRET}
        return self.conversation.to_json(self.settings.model, parameters)

    def leave(self) -> None:
        self._leaves = True

    def handle(self, line: str) -> None:
        """Do what one line asks for; whatever becomes of it, the chat goes on."""
        try:
            command, argument = find_command(line)
            if command is not None:
                command.run(self, argument)
                return
            text, dropped = without_dropped_files(line)
            parts = [attachment(place) for place in dropped]
            for place in dropped:
                self.screen.note(f"attached {place}")
            question = user_message(text, [*self.attached, *parts])
            self.attached = []
            self.ask(question)
        except VLLMError as exc:
            self.screen.error(_in_short(exc))

    def waiting(self, work: Callable[[], Any], interrupted: str) -> Any:
        """``work()``; None, with a note, where Ctrl-C ended the waiting."""
        try:
            with without_echo(), self._interrupts.allowed():
                return work()
        except KeyboardInterrupt:
            self.screen.note(interrupted)
            return None

    def _begin(self) -> None:
        """Start the engine, with its bar; a chat can begin without it: the first message tries again."""
        try:
            self.waiting(lambda: make_ready(self.engine), "not waiting any longer; the engine goes on starting")
        except VLLMError as exc:
            self.screen.error(_in_short(exc))
        self.screen.say(f"{self.model_name}{self._window()}. /? lists the commands, Ctrl-D leaves.")

    def _window(self) -> str:
        window = self.engine.context_window
        return f", {window:,} tokens of context" if window else ""

    # ---- one answer

    def ask(self, question: Message) -> None:
        """Send the question and show its answer. Without one it is kept: ``/retry`` sends it again."""
        self.conversation.unanswered = question
        messages = self.conversation.to_send(question)
        answer = Answer()
        view = AnswerView(self.screen, is_markdown=self.display.is_markdown, hides_thinking=self.display.hides_thinking)
        is_stopped = False
        try:
            with without_echo(), self._interrupts.allowed(), media_errors(messages, self.settings, WORDING):
                if not self.settings.is_remote:
                    make_ready(self.engine)
                    answer.has_waited()
                answer.follow(self.engine.stream_chat(messages, **self.parameters), view.text, view.reasoning)
        except KeyboardInterrupt:
            is_stopped = True
        except VLLMError as exc:
            view.end()
            self.screen.error(self._explained(exc))
            return
        view.end()
        self._keep(question, answer, is_stopped=is_stopped)

    def _keep(self, question: Message, answer: Answer, *, is_stopped: bool) -> None:
        if is_stopped and not answer.text:
            self.screen.note("stopped before an answer came; /retry asks again")
            return
        self.conversation.add(question, answer)
        self.last_answer = answer
        self.totals.add(answer)
        if is_stopped:
            self.screen.note("stopped; what came is kept: /retry asks again, /undo takes it back")
        elif answer.was_cut:
            self.screen.warn(f"the answer was cut off: {self._why_cut(answer)}")
        elif not answer.text:
            self.screen.note("the answer is empty")
        if self.display.shows_stats:
            self.screen.note(answer.figures)
        self._warn_of_the_window()
        self.screen.say()

    def _why_cut(self, answer: Answer) -> str:
        window = self.engine.context_window
        if window and answer.usage and answer.usage.total_tokens >= window:
            return f"the context of {window:,} tokens is full; /undo and /clear make room, /retry asks again"
        return "it has max_tokens; /set max_tokens sets another limit, /retry asks again"

    def _explained(self, exc: VLLMError) -> str:
        if not isinstance(exc, ContextLengthError):
            return f"{_in_short(exc)}\nYour message is kept: /retry sends it again."
        told = f"This does not fit the model any more: {exc}"
        if exc.prompt_tokens and exc.max_model_len:
            told = f"This does not fit: {exc.prompt_tokens:,} tokens, and the model takes {exc.max_model_len:,}"
            told += f" ({exc.excess:,} too many)." if exc.excess else "."
        alone = (exc.prompt_tokens or 0) - (self.conversation.tokens or 0)
        if not self.conversation.messages or (exc.max_model_len and alone >= exc.max_model_len):
            return f"{told}\nThe message alone is too long: shorten it. The up arrow brings it back."
        return (
            f"{told}\nNothing is lost. /undo takes the last question and its answer back, /clear all of them "
            "(/save keeps them in a file); then /retry sends your message again."
        )

    # ---- the context window

    def context_in_words(self) -> str:
        """How full it is, as far as the engine has said; empty where not even its size is known."""
        tokens, window = self.conversation.tokens, self.engine.context_window
        if not window:
            return ""
        if tokens is None:
            return f"{window:,} tokens of context"
        return f"{tokens:,} of {window:,} tokens ({tokens / window:.0%})"

    def _is_nearly_full(self) -> bool:
        tokens, window = self.conversation.tokens, self.engine.context_window
        return tokens is not None and window is not None and tokens >= WARN_FROM * window

    def status_line(self) -> tuple[str, bool]:
        """For the line under the prompt: model, context, what is attached; and whether the context is nearly full."""
        told = [self.model_name, *filter(None, [self.context_in_words()])]
        if self.attached:
            told.append(f"{len(self.attached)} attached")
        if self.conversation.unanswered is not None:
            told.append("unanswered: /retry")
        return " | ".join(told), self._is_nearly_full()

    def _warn_of_the_window(self) -> None:
        if self._is_nearly_full():
            self.screen.warn(f"the context is nearly full, {self.context_in_words()}: /undo and /clear make room")

    # ---- for commands

    def use(self, settings: EngineSettings) -> bool:
        """Go on with another engine, once it is ready; False where Ctrl-C ended the waiting."""
        left = "still with the model before; the other one goes on starting"
        engine = self.waiting(lambda: make_ready(Engine(settings)), left)
        if engine is not None:
            self.settings, self.engine = settings, engine
        return engine is not None


def make_ready(engine: Engine) -> Engine:
    """The engine, when it answers. It is waited for on an event loop of its own, which ends with Ctrl-C, and
    with it the bar of a start.
    """

    async def wait() -> None:
        try:
            await engine.awarmup()
        finally:
            await engine.aclose()

    asyncio.run(wait())
    return engine


def _in_short(exc: VLLMError) -> str:
    """Of a failed start, some of the log."""
    if not isinstance(exc, EngineError) or not exc.log_tail:
        return str(exc)
    return "\n".join(
        [exc.message, *(f"  | {line}" for line in exc.log_tail[-LOG_LINES:]), "`vllm-local logs` shows more."]
    )


@dataclass
class Totals:
    """Of one chat."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        self.answers += 1
        self.seconds += answer.total_s
        if answer.usage is not None:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.completion_tokens += answer.usage.completion_tokens
