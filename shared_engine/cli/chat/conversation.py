"""What was said so far, and its file. Pure, but for reading and writing that file."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_engine.cli.asking.answer import Answer
from shared_engine.errors import InvalidInputError
from shared_engine.request.checks import check_messages

Message = dict[str, Any]
FORMAT = "vllm-local chat"
_SENT = ("role", "content", "name", "tool_calls", "tool_call_id")


class Conversation:
    """The messages of a chat in OpenAI's form, of which each question has its answer.

    Attributes:
        unanswered: a question that got no answer: nothing of it is in ``messages``, and nothing of it is lost.
    """

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.messages: list[Message] = []
        self.unanswered: Message | None = None
        self._tokens: dict[int, int] = {}

    def to_send(self, question: Message | None = None) -> list[Message]:
        """What the model is shown: without what it thought."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [
            {name: message[name] for name in _SENT if name in message}
            for message in (*system, *self.messages, *([question] if question else []))
        ]

    def add(self, question: Message, answer: Answer) -> None:
        reply: Message = {"role": "assistant", "content": answer.text}
        if answer.reasoning:
            reply["reasoning_content"] = answer.reasoning
        self.messages += [question, reply]
        self.unanswered = None
        if answer.usage is not None:
            # What it thought is not sent again.
            self._tokens[len(self.messages)] = answer.usage.total_tokens - (answer.usage.reasoning_tokens or 0)

    @property
    def tokens(self) -> int | None:
        """How many the last answer ended with, by the engine's own count; None where it has not said."""
        return self._tokens.get(len(self.messages)) if self.messages else 0

    @property
    def last_question(self) -> Message | None:
        return next((message for message in reversed(self.messages) if message["role"] == "user"), None)

    @property
    def last_answer(self) -> str | None:
        last = self.messages[-1] if self.messages else None
        return str(last["content"] or "") if last is not None and last["role"] == "assistant" else None

    def take_back(self) -> Message | None:
        """Remove the last question and what followed it; return the question."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "user":
                question = self.messages[index]
                del self.messages[index:]
                self._tokens = {length: count for length, count in self._tokens.items() if length <= index}
                return question
        return None

    def clear(self) -> None:
        """Forget what was said; the system prompt and an unanswered question stay."""
        self.messages.clear()
        self._tokens.clear()

    def set_system(self, system: str | None) -> None:
        self.system = system
        self._tokens.clear()  # they were counted with the old one

    # ---- as a file

    def to_json(self, model: str | None, parameters: dict[str, Any]) -> dict[str, Any]:
        """``messages`` is what LangChain's convert_to_messages takes, and each of them LlamaIndex's ChatMessage."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        waiting = [self.unanswered] if self.unanswered else []
        return {
            "format": FORMAT,
            "version": 1,
            "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": model,
            "parameters": parameters,
            "messages": [_with_block_types(message) for message in (*system, *self.messages, *waiting)],
        }

    def replace_by(self, saved: Sequence[Message]) -> None:
        """Go on with a conversation of a file."""
        messages = [dict(message) for message in saved]
        is_led = bool(messages) and messages[0]["role"] in ("system", "developer")
        self.clear()
        self.system = _text(messages.pop(0)["content"]) if is_led else None
        has_question = bool(messages) and messages[-1]["role"] == "user"
        self.unanswered = messages.pop() if has_question else self.unanswered
        self.messages = messages


def save(document: dict[str, Any], file: Path, *, may_replace: bool) -> None:
    """Write the session, for its owner alone, whole or not at all.

    Raises:
        InvalidInputError: the file is there already, or can't be written.
    """
    if not may_replace and file.exists():
        raise InvalidInputError(f"{file} exists already: save under another name")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # 0600
        try:
            # Half a character, as of a file with "\\udce9" in it, is written as JSON writes it.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                json.dump(document, stream, indent=2, ensure_ascii=False)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except (OSError, ValueError) as exc:
        raise InvalidInputError(f"{file} can't be written: {getattr(exc, 'strerror', None) or exc}") from exc


def load(file: Path) -> dict[str, Any]:
    """A session as ``save`` writes it; or a bare list of messages in OpenAI's form, as a session with nothing else.

    Raises:
        InvalidInputError: the file can't be read, or holds neither.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InvalidInputError(f"{file} can't be read: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{file} is not JSON: {exc}") from exc
    session = {"messages": document} if isinstance(document, list) else document
    if not isinstance(session, dict) or not isinstance(session.get("messages"), list):
        raise InvalidInputError(f"{file} is not a chat: it has no list of messages")
    if not isinstance(session.get("parameters", {}), dict):
        raise InvalidInputError(f"{file}: parameters must be an object")
    if session["messages"]:
        check_messages(session["messages"], f"{file}: messages")
    return {**session, "messages": [_without_block_types(message) for message in session["messages"]]}


def _text(content: object) -> str | None:
    """Of a system message, whose content may be parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return None if content is None else str(content)


def _with_block_types(message: Message) -> Message:
    """Parts are LlamaIndex's blocks too: what each of the two reads, the other leaves alone."""
    if not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_block(part) for part in message["content"]]}


def _block(part: object) -> object:
    if not isinstance(part, dict):
        return part
    kind = str(part.get("type", "")).removesuffix("_url")
    media = part.get(f"{kind}_url")
    return {**part, "block_type": kind, **({"url": media["url"]} if isinstance(media, dict) else {})}


def _without_block_types(message: Message) -> Message:
    if not isinstance(message.get("content"), list):
        return message
    content = [
        {name: value for name, value in part.items() if name not in ("block_type", "url")}
        if isinstance(part, dict) and "block_type" in part
        else part
        for part in message["content"]
    ]
    return {**message, "content": content}
