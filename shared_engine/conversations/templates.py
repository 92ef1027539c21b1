"""What the chat template of a model on this machine refuses, or leaves out: it is asked, with small conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared_engine.conversations.traits import NONE, Message, Trait
from shared_engine.machine.home import expanded
from shared_engine.model_files.changes import while_unchanged
from shared_engine.model_files.folder import chat_template, model_folder, read_json
from shared_engine.settings import EngineSettings

# vLLM writes the conversations of this one by code of its own.
_WITHOUT_TEMPLATE = ("gpt_oss",)


def refused_here(settings: EngineSettings) -> Trait | None:
    """What conversations must not have for a local engine, by its model's chat template.

    None while that is not known: the model is not here yet, vLLM alone knows its template, or jinja2 is not installed.
    Then the engine says what it refuses.
    """
    if settings.is_remote:
        return None
    given = settings.engine_args.get("chat_template")
    revision = settings.engine_args.get("tokenizer_revision") or settings.revision
    folder = model_folder(settings.tokenizer or settings.model or "", revision)
    if folder is None or "tokenizer_mode" in settings.engine_args:
        return None
    return _refused_by_model(folder, None if given is None else str(given))


@while_unchanged
def _refused_by_model(folder: Path, given: str | None) -> Trait | None:
    if read_json(folder / "config.json").get("model_type") in _WITHOUT_TEMPLATE:
        return None
    template = chat_template(folder) if given is None else _given_template(given)
    tokens = read_json(folder / "tokenizer_config.json")
    special = {name: _token(value) for name, value in tokens.items() if name.endswith("_token")}
    return None if template is None else refused_by(template, special)


def _given_template(given: str) -> str | None:
    """vLLM takes a file's path, or the template itself; a name that is neither is one of its own."""
    file = expanded(given)
    if "{" not in given and file.is_file():
        return file.read_text(errors="replace")
    return given if "{" in given else None


def _token(value: Any) -> str:
    return str(value.get("content", "") if isinstance(value, dict) else value or "")


# ---- asked with conversations

_ARGUMENTS = {"city": "Paris"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}},
    },
}
_ID = "abcdefghi"
_FOREIGN_ID = "call_0123456789abcdef01234567"


def _said(role: str, at: int) -> Message:
    return {"role": role, "content": f"zq{at}zq"}


def _conversation(roles: str, call_id: str = _ID) -> list[Message]:
    """By letters: s system, u user, a assistant, e the same with nothing to say, c calling a tool, t its result."""
    made: list[Message] = []
    for at, role in enumerate(roles):
        if role == "c":
            call = {"id": call_id, "type": "function", "function": {"name": f"zq{at}zq", "arguments": _ARGUMENTS}}
            made.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif role == "e":
            made.append({"role": "assistant", "content": ""})
        elif role == "t":
            made.append({**_said("tool", at), "tool_call_id": call_id})
        else:
            made.append(_said({"s": "system", "u": "user", "a": "assistant"}[role], at))
    return made


_PROBES: dict[Trait, tuple[list[Message], ...]] = {
    Trait.SYSTEM: (_conversation("su"),),
    Trait.LATE_SYSTEM: (_conversation("ssu"), _conversation("suasu"), _conversation("us")),
    Trait.NEIGHBOURS: (_conversation("uu"), _conversation("uaau")),
    Trait.OPENING: (_conversation("au"), _conversation("s")),
    Trait.ENDING: (_conversation("ua"),),
    Trait.EMPTY: (_conversation("ueu"),),
    Trait.TOOLS: (_conversation("uct"),),
    Trait.USER_AFTER_TOOL: (_conversation("uctu"),),
    Trait.UNPAIRED: tuple(map(_conversation, ("ucu", "ucau", "utau"))),
    Trait.CALL_IDS: (_conversation("uct", _FOREIGN_ID),),
}


@lru_cache(maxsize=64)
def _refused_by(template: str, special_tokens: tuple[tuple[str, str], ...]) -> Trait | None:
    try:
        compiled = compiled_template(template)
    except Exception:  # no jinja2, or a template for a newer one: vLLM will say
        return None
    special = dict(special_tokens)
    plain = _conversation("u")
    form = next((form for form in (_as_text, _as_parts) if _takes(compiled, form(plain), special)), None)
    if form is None:
        return None
    refused = NONE
    for trait, conversations in _PROBES.items():
        if not all(_takes(compiled, form(conversation), special) for conversation in conversations):
            refused |= trait
    return refused


def refused_by(template: str, special_tokens: Mapping[str, str]) -> Trait | None:
    """What the template refuses or leaves out; None where it can't be asked."""
    return _refused_by(template, tuple(sorted(special_tokens.items())))


def _as_text(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


def _as_parts(messages: Sequence[Message]) -> Sequence[Message]:
    """As vLLM gives contents, but those of tools, to a template that goes through their parts."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if message["role"] != "tool" else message
        for message in messages
    ]


def _takes(compiled: Any, messages: Sequence[Message], special_tokens: Mapping[str, str]) -> bool:
    """Whether all that is said is in the prompt; of some templates only where tools are offered."""
    marks = [f"zq{at}zq" for at in range(len(messages)) if f"zq{at}zq" in json.dumps(messages[at])]
    offers = (
        (None, [_TOOL])
        if any(message["role"] == "tool" or "tool_calls" in message for message in messages)
        else (None,)
    )
    prompts = (_prompt(compiled, messages, tools, special_tokens) for tools in offers)
    return any(prompt is not None and all(mark in prompt for mark in marks) for prompt in prompts)


def _prompt(compiled: Any, messages: Sequence[Message], tools: Any, special_tokens: Mapping[str, str]) -> str | None:
    variables = {"documents": None, "add_generation_prompt": True, **special_tokens}
    try:
        rendered: str = compiled.render(messages=messages, tools=tools, **variables)
    except Exception:  # raised by the template, or for what it did not expect
        return None
    return rendered


def compiled_template(template: str) -> Any:
    """As transformers compiles it (transformers/utils/chat_template_utils.py).

    Raises:
        ImportError: jinja2 is not installed.
        Exception: jinja2's own, for what it can't read.
    """
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """Marks what an assistant wrote; nothing here asks for it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
