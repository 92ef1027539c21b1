"""A chat template, rendered as transformers 5 and vLLM 0.32 render it. Needs jinja2, which is imported on first use.

A template comes with a model and is not trusted: it runs in jinja2's sandbox.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shared_engine.errors import InvalidInputError
from shared_engine.token_count.vllm_messages import ContentFormat, developer_as_system, template_messages

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes


class ChatTemplate:
    """One template. Threads may share it.

    Args:
        text: jinja2.
        content_format: how the template wants a message's content: ``string``, or ``openai`` for a list of parts.
            Default: found out from what it does with it.
    """

    def __init__(self, text: str, content_format: ContentFormat | None = None) -> None:
        self._text = text
        self._environment = _environment()
        self._content_format = content_format

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        special_tokens: Mapping[str, str],
    ) -> str:
        """The prompt of a conversation, up to where the model's answer begins.

        Args:
            messages: such that ``vllm_messages.doubt_of_messages`` is None for them.
            tools: what ``vllm_messages.template_tools`` returned.
            variables: those that the template does not use are left out.
            special_tokens: such as ``bos_token``.

        Raises:
            InvalidInputError: the template refuses them, or is broken.
        """
        try:
            template = self._compiled
            given = template_messages(messages, self.content_format)
            if any(message["role"] == "developer" for message in given) and not self._knows_developers:
                given = developer_as_system(given)
            used = {name: value for name, value in variables.items() if name in self._variables}
            return template.render(
                messages=given, tools=tools, documents=None, add_generation_prompt=True, **{**special_tokens, **used}
            )
        except Exception as exc:  # a template can fail in any way that Python can
            raise InvalidInputError(f"the model's chat template refuses this conversation: {exc}") from exc

    @cached_property
    def content_format(self) -> ContentFormat:
        return self._content_format or self._detected_format()

    def _detected_format(self) -> ContentFormat:
        try:
            next(_loops_over_content(self._environment.parse(self._text)))
        except Exception:  # none found; broken; or too unusual to follow, where vLLM says the same
            return "string"
        return "openai"

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return self._environment.from_string(self._text)

    @cached_property
    def _variables(self) -> set[str]:
        from jinja2 import meta

        return meta.find_undeclared_variables(self._environment.parse(self._text))

    @property
    def _knows_developers(self) -> bool:
        return '"developer"' in self._text or "'developer'" in self._text


def _environment() -> jinja2.Environment:
    """As in transformers/utils/chat_template_utils.py."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks the model's own text for training; here its body is all there is to it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        @jinja2.pass_eval_context
        def _body(self, _context: Any, caller: Any) -> Any:
            return caller()

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


# ---- does the template go through the parts of a message's content? After vllm/renderers/hf.py, step by step, with the
# ---- same blind spots: what vLLM does not see must not be seen here either.


def _is_variable(node: nodes.Node | None, variable: str, key: str | None = None) -> bool:
    """``variable``, or ``variable[key]``; or a slice of it, or what a filter or test makes of it."""
    from jinja2 import nodes

    if isinstance(node, nodes.Filter):
        return node.node is not None and _is_variable(node.node, variable, key)
    if isinstance(node, nodes.Test) or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)):
        return _is_variable(node.node, variable, key)
    if key is None:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable
    if isinstance(node, nodes.Getitem):
        return _is_variable_itself(node.node, variable) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and _is_variable_itself(node.node, variable) and node.attr == key


def _is_variable_itself(node: nodes.Node, variable: str) -> bool:
    from jinja2 import nodes

    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable


def _names_of(root: nodes.Template, variable: str) -> Iterator[str]:
    """The names that a variable is assigned to, itself first."""
    from jinja2 import nodes

    yield variable
    known, related = {variable}, deque([variable])
    while related:
        name = related.popleft()
        for assignment in root.find_all(nodes.Assign):
            if _is_variable(assignment.node, name) and (target := _name(assignment.target)) not in known:
                yield target
                known.add(target)
                related.append(target)


def _names_of_a_message(root: nodes.Template) -> Iterator[str]:
    from jinja2 import nodes

    names = list(_names_of(root, "messages"))
    for loop in root.find_all(nodes.For):
        if any(_is_variable(loop.iter, name) for name in names):
            yield _name(loop.target)


def _loops_over_content(root: nodes.Template) -> Iterator[nodes.For]:
    from jinja2 import nodes

    messages = list(_names_of_a_message(root))
    in_macros: dict[int, set[str]] = {}
    for macro in root.find_all(nodes.Macro):
        arguments = _arguments_with_content(root, macro, messages)
        for loop in macro.find_all(nodes.For):
            in_macros.setdefault(id(loop), set())
            if arguments:
                in_macros[id(loop)] = arguments
    for loop in root.find_all(nodes.For):
        is_content = any(_is_variable(loop.iter, name, "content") for name in messages)
        if not is_content and isinstance(loop.iter, nodes.Name):
            is_content = loop.iter.name in in_macros.get(id(loop), {"content"})
        if is_content:
            _name(loop.target)
            yield loop


def _arguments_with_content(root: nodes.Template, macro: nodes.Macro, messages: list[str]) -> set[str]:
    """The macro's arguments that are given a message's content somewhere."""
    from jinja2 import nodes

    def is_content(node: nodes.Node) -> bool:
        return any(_is_variable(node, name, "content") for name in messages)

    found: set[str] = set()
    names = [argument.name for argument in macro.args]
    for call in root.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
            found |= {name for name, value in zip(names, call.args, strict=False) if is_content(value)}
            found |= {keyword.key for keyword in call.kwargs if keyword.key in names and is_content(keyword.value)}
    return found


def _name(target: nodes.Node) -> str:
    from jinja2 import nodes

    if not isinstance(target, nodes.Name):
        raise TypeError("a template that unpacks messages")
    return target.name
