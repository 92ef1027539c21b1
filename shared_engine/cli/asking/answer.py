"""One answer as it comes: its text so far, when it came, and its figures in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from shared_engine.results import GenerationChunk, TokenUsage

Say = Callable[[str], None]
# What a model writes must not move the cursor, change colours or ask the terminal anything.
_CONTROLS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


def printable(text: str) -> str:
    """The text with a visible sign in place of each control character, for a terminal."""
    return text.translate(_CONTROLS)


@dataclass
class Answer:
    """The first choice of a stream. What has come before an error or Ctrl-C is in it all the same."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    wait_s: float = 0.0
    """For the engine's start, of ``first_s``."""
    first_s: float | None = None
    """From the call to the first piece."""
    total_s: float = 0.0
    model: str = ""
    request_id: str = ""
    _began: float = field(default_factory=time.monotonic)

    def follow(self, chunks: Generator[GenerationChunk, None, None], on_text: Say, on_reasoning: Say) -> None:
        """Read the stream to its end. However this ends, the request has ended too."""
        try:
            with closing(chunks):
                for chunk in chunks:
                    self._take(chunk)
                    if chunk.reasoning:
                        on_reasoning(chunk.reasoning)
                    if chunk.text:
                        on_text(chunk.text)
        finally:
            self.total_s = time.monotonic() - self._began

    def _take(self, chunk: GenerationChunk) -> None:
        if self.first_s is None:
            self.first_s = time.monotonic() - self._began
        self.text += chunk.text
        self.reasoning += chunk.reasoning or ""
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage
        self.model, self.request_id = chunk.model or self.model, chunk.request_id or self.request_id

    def has_waited(self) -> None:
        """What has passed so far was for the engine's start."""
        self.wait_s = time.monotonic() - self._began

    @property
    def figures(self) -> str:
        return figures(self.usage, self.wait_s, self.first_s, self.total_s)

    @property
    def was_cut(self) -> bool:
        """The model had more to say."""
        return self.finish_reason == "length"


def figures(usage: TokenUsage | None, wait_s: float, first_s: float | None, total_s: float) -> str:
    """``load 3.12 s, first token 0.04 s, 42 tokens in 0.31 s (152.1 tokens/s), prompt 23 tokens (16 cached)``.

    Args:
        wait_s: for the engine's start, which is part of the next two.
        first_s: until the first token; None of an answer that did not come in pieces.
        total_s: until the last one.
    """
    told = [f"load {wait_s:.2f} s"]
    if first_s is not None:
        told.append(f"first token {max(0.0, first_s - wait_s):.2f} s")
    if usage is None:
        return ", ".join([*told, f"ended after {total_s - wait_s:.2f} s, without a count of tokens"])
    duration = max(0.0, total_s - wait_s)
    decoding = total_s - first_s if first_s is not None else 0.0  # the first token is the prompt's
    rate = (usage.completion_tokens - 1) / decoding if decoding > 0 and usage.completion_tokens > 1 else None
    told.append(f"{usage.completion_tokens} tokens in {duration:.2f} s" + (f" ({rate:.1f} tokens/s)" if rate else ""))
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    told.append(f"prompt {usage.prompt_tokens} tokens{cached}")
    if usage.reasoning_tokens:
        told.append(f"{usage.reasoning_tokens} of reasoning")
    return ", ".join(told)
