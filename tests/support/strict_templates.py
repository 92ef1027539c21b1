"""Chat templates that refuse conversations, each in the way of a family of models; and a server that applies one."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from shared_engine.conversations.templates import compiled_template
from tests.support.remote_server import RemoteServer, running_server

_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_SHOWN = "<{{ m.role }}>{{ m.content | trim }}\n"

TEMPLATES = {
    "gemma 2": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}" + _ALTERNATE + _SHOWN + "{% endfor %}",
    "gemma 3": "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}" + _ALTERNATE + _SHOWN + "{% endfor %}",
    "qwen 3.5": "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
    "{{ raise_exception('No user query found in messages.') }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    + _SHOWN
    + "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}\n{% endfor %}{% endfor %}",
    "mistral": "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% set ns = namespace(i=0) %}{% for m in rest %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('After the optional system message, conversation "
    "roles must alternate user and assistant roles except for tool calls and results.') }}{% endif %}"
    "{% set ns.i = ns.i + 1 %}{% endif %}{% endfor %}{% for m in rest %}"
    "{% if m.role == 'system' %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
    "{% if m.role == 'assistant' and not m.content and not m.tool_calls %}"
    "{{ raise_exception('Assistant message must have content or tool calls.') }}{% endif %}"
    "{% for id in (m.tool_calls or []) | map(attribute='id') | list + ([m.tool_call_id] if m.role == 'tool' else []) %}"
    "{% if not id or id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% endfor %}"
    + _SHOWN
    + "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}\n{% endfor %}{% endfor %}",
    "mistral-common": "{% for m in messages %}{% if loop.last and m.role not in ('user', 'tool') and "
    "not continue_final_message %}{{ raise_exception('Expected last role User or Tool (or Assistant with prefix or "
    "continue_final_message set to True) for serving but got assistant') }}{% endif %}" + _SHOWN + "{% endfor %}",
    "drops": "{% for m in messages %}{% if m.role != 'system' or loop.first %}" + _SHOWN + "{% endif %}{% endfor %}",
}


_ROLES = {"developer": "system"}  # where a template does not name it


def rendered(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    """The prompt, as vLLM has it made of plain messages.

    Raises:
        jinja2.TemplateError: the template refuses them.
    """
    plain = [
        {**message, "role": _ROLES.get(message["role"], message["role"]), "content": _plain(message.get("content"))}
        for message in json.loads(json.dumps(messages))
    ]
    made: str = _compiled(template).render(messages=plain, tools=None, **variables)
    return made


_compiled = functools.cache(compiled_template)


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


class StrictServer:
    """Refuses what its template refuses.

    Attributes:
        prompts: of the requests that it took.
        refused: how many it did not take.
    """

    def __init__(self, server: RemoteServer, template: str, status: int = 400) -> None:
        self.url = server.url
        self.server = server
        self.prompts: list[str] = []
        self.refused = 0
        self._template = template
        self._status = status
        self._answer = server.handler
        server.handler = self._handle

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        try:
            prompt = rendered(
                self._template, body["messages"], continue_final_message=body.get("continue_final_message", False)
            )
        except Exception as exc:
            self.refused += 1
            error = {"error": {"message": str(exc), "code": self._status}}
            return web.json_response(error, status=self._status)
        self.prompts.append(prompt)
        return await self._answer(request)


@contextmanager
def strict_server(template: str, status: int = 400) -> Iterator[StrictServer]:
    with running_server() as server:
        from tests.support.scripted import answers

        answers(server, "Hi")
        yield StrictServer(server, template, status)
