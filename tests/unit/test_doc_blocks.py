"""Every block of code in the pages is run, or held against what it is about; none is known to nobody."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import yaml
from aiohttp import web
from llama_index.core import Settings

from deploy.distributions.projects import DISTRIBUTIONS
from langchain_vllm_local import ChatVLLM
from shared_engine import Engine, LifeStats, SettingsError
from shared_engine.cli import main as command_line
from shared_engine.settings import ENVIRONMENT
from tests.support.doc_blocks import PAGES, Block, all_blocks, blocks_of, without_distributions
from tests.support.paths import REPOSITORY
from tests.support.pooling_server import embeds_and_reranks
from tests.support.remote_server import RemoteServer, chat_answer, running_server

OURS = ("shared_engine", "langchain_vllm_local", "llama_index_vllm_local")
RUN_BY = {
    "README.md": "tests/real/test_examples.py::test_readme_code_runs",
    **{
        f"deploy/integrations/{page}": "tests/unit/test_integration_pages.py::test_the_code_of_a_page_runs"
        for page in (
            *(f"langchain/pages/{component}/vllm_local.mdx" for component in ("chat", "embeddings", "retrievers")),
            "llama_index/rows/node_postprocessors.md",
        )
    },
    "docs/chat.md": "tests/langchain/test_langchain_saved_chats.py, tests/llama_index/test_llama_index_saved_chats.py",
    "docs/context.md": "tests/real/test_examples.py::test_the_code_in_the_docs_of_the_context_budget_runs",
    "docs/engine.md": "tests/real/test_examples.py::test_the_code_in_the_docs_of_the_engine_runs",
    "docs/gpu.md": "tests/unit/test_gpu_monitor.py::test_the_code_on_the_page_runs",
    "docs/langchain.md": "tests/real/test_examples.py::test_the_code_in_the_docs_of_langchain_runs",
    "docs/llama_index.md": "tests/real/test_examples.py::test_the_code_in_the_docs_of_llama_index_runs",
    "docs/logging.md": "tests/unit/test_logs.py::test_the_code_on_the_page_runs",
    "docs/lora.md": "tests/real/test_examples.py::test_the_code_in_the_docs_of_lora_runs",
    "docs/messages.md": "tests/real/test_examples.py::test_the_code_in_the_docs_of_messages_runs",
    "docs/openai_client.md": "tests/real/test_openai_packages.py::test_the_code_in_the_docs_of_the_openai_client_runs",
    "docs/replicas.md": "tests/unit/test_replica_settings.py, tests/real/test_replicas_on_vllm.py",
    "docs/reproducible.md": "tests/real/test_examples.py::test_the_code_in_the_docs_of_reproducible_answers_runs",
    "docs/scale.md": "tests/unit/test_scale.py",
    "docs/serve_tcp.md": "tests/real/test_tcp_on_vllm.py::test_the_code_in_the_docs_runs",
    "docs/start.md": "tests/real/test_examples.py::test_the_code_of_the_first_five_minutes_runs",
}
"""Page -> the tests that run its Python, all of it."""

HERE = (
    *(f"deploy/distributions/{distribution.name}.md" for distribution in DISTRIBUTIONS),
    *(
        f"docs/{name}.md"
        for name in (
            "direct", "errors", "fleets", "from-chatollama", "from-chatopenai", "from-community-vllm",
            "from-llama-index-vllm", "from-openai-like", "from-own-wrappers", "index", "metrics", "parallel",
        )
    ),
)  # fmt: skip
"""Pages whose Python is run here, against a server that answers anything."""

ANSWER = "The capital of France is Paris."


# ---- Python


def test_every_page_with_python_is_run_by_a_test() -> None:
    pages = {block.page for block in all_blocks("python") if not block.reason}
    assert sorted(pages) == sorted([*RUN_BY, *HERE])


def test_what_is_not_run_says_why() -> None:
    assert {block.page for block in all_blocks() if block.reason and block.language != "python"} == set()
    assert all(len(block.reason.split()) > 1 for block in all_blocks("python") if block.reason)


@pytest.mark.parametrize("page", RUN_BY)
def test_the_test_that_runs_a_page_is_there(page: str) -> None:
    for named in RUN_BY[page].split(", "):
        file, _, test = named.partition("::")
        assert f"def {test}" in (REPOSITORY / file).read_text(), named


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_compiles_and_what_it_imports_of_ours_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            module = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


async def answers_anything(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    if "input" in body or "documents" in body:
        return await embeds_and_reranks(request)
    answer = chat_answer(ANSWER)
    answer["choices"][0]["text"] = ANSWER
    if not body.get("stream"):
        return web.json_response(answer)
    choice = {"index": 0, "delta": {"content": ANSWER}, "text": ANSWER, "finish_reason": "stop"}
    event = json.dumps({"id": "c", "model": "served", "choices": [choice], "usage": answer["usage"]})
    return web.Response(text=f"data: {event}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RemoteServer]]:
    """Three; whoever names none is sent to the first one, so that nothing is downloaded and started."""
    with ExitStack() as stack:
        found = [stack.enter_context(running_server()) for _ in range(3)]
        for server in found:
            server.handler = answers_anything
            server.models = [{"id": "Qwen/Qwen3-4B", "max_model_len": 2048}]
        monkeypatch.setenv(ENVIRONMENT["base_url"], found[0].url)
        yield found


SAYS = {
    "deploy/distributions/llama-index-embeddings-vllm-local.md": "The Norling bridge was opened in 1936.",
    "deploy/distributions/llama-index-postprocessor-vllm-local-rerank.md": "0.18 Bridges of Norling",
    "docs/errors.md": "",
    "docs/fleets.md": " ready ",
    "docs/metrics.md": "\n1 {} 7.0\n",
    "docs/parallel.md": "",
}
"""What a page's code prints, if not the answer."""


@pytest.mark.parametrize("page", HERE)
def test_the_python_of_a_page_runs(
    page: str, servers: list[RemoteServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = [block for block in blocks_of(REPOSITORY / page) if block.language == "python" and not block.reason]
    code = "\n".join(block.code for block in blocks)
    for module in ("langchain_openai",):  # not in the environment of the oldest releases
        if f"from {module} import" in code:
            pytest.importorskip(module)
    addresses = dict.fromkeys(re.findall(r"http://[\w:-]+/v1", code))
    for address, server in zip(addresses, servers, strict=False):
        code = code.replace(f'"{address}"', f'"{server.url}/v1"')
    code = without_distributions(code)
    if "mode=" in code:  # vLLM itself is not here
        monkeypatch.setenv(ENVIRONMENT["fallback"], "remote")
    engine = Engine(model="Qwen/Qwen3-4B")
    names: dict[str, Any] = {"Engine": Engine, "ChatVLLM": ChatVLLM, "engine": engine}
    if page == "docs/metrics.md":  # of an engine of this machine, as the page has it
        stats = replace(engine.stats(), life=LifeStats(starts=1), counters={"generation_tokens": 7.0})
        monkeypatch.setattr(engine, "stats", lambda: stats)
        ports = take_prometheus(monkeypatch)
    for name in ("_llm", "_embed_model"):  # what a page sets holds for its own code only
        monkeypatch.setattr(Settings, name, None)
    exec(compile(code, page, "exec"), names)
    assert SAYS.get(page, ANSWER) in capsys.readouterr().out
    assert page != "docs/metrics.md" or ports == [9400]
    assert page != "docs/errors.md" or names["ask"](engine, [{"role": "user", "content": "Hello"}]) == ANSWER
    assert page != "docs/fleets.md" or len(engine_of(names).status().members) == 2, "one of three was removed"


def engine_of(names: dict[str, Any]) -> Engine:
    engine: Engine = names["engine"]
    return engine


def take_prometheus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A registry of this test; the ports at which it would be served."""
    prometheus_client = pytest.importorskip("prometheus_client")
    ports: list[int] = []
    monkeypatch.setattr(prometheus_client, "REGISTRY", prometheus_client.CollectorRegistry())
    monkeypatch.setattr(prometheus_client, "start_http_server", ports.append)
    return ports


# ---- other languages


LANGUAGES = ("python", "console", "json", "toml", "yaml", "text", "diff", "sh", "bash")


def test_every_block_has_a_language_that_is_looked_at() -> None:
    assert [f"{block}: {block.language!r}" for block in all_blocks() if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    try:
        json.loads(block.code)
    except ValueError:
        for line in block.code.splitlines():
            json.loads(line)


@pytest.mark.parametrize("block", all_blocks("toml", "yaml"), ids=str)
def test_files_of_settings_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.code) if block.language == "toml" else yaml.safe_load(block.code)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and its words, of each call of vllm-local in the pages' terminals."""
    for block in all_blocks("console", "text", "sh", "bash"):
        for line in block.code.splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            with contextlib.suppress(ValueError):  # a text that is no command
                words = [*lexer]
            while words:
                end = next((n for n, word in enumerate(words) if word in ("|", "&&", "<", ">", ";")), len(words))
                if words[0] == "vllm-local" and (line.startswith("$ ") or block.language != "text"):
                    yield str(block), words[1:end]
                words = words[end + 1 :]


@pytest.mark.slow
def test_every_command_of_the_pages_is_one_that_the_parser_takes() -> None:
    wrong = []
    found = list(commands())
    parser = command_line.parser_of(command_line.COMMANDS)
    for where, words in found:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                parser.parse_args(words)
            except SystemExit:
                wrong.append(f"{where}: {shlex.join(words)}: {said.getvalue()}")
    assert wrong == []
    assert len(found) > 80


def test_every_make_target_of_the_pages_is_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = {name for line in re.findall(r"^([a-z][\w -]*):", makefile, re.MULTILINE) for name in line.split()}
    pages = "\n".join(path.read_text() for path in PAGES)
    named = set(re.findall(r"(?:`|^)make ([a-z][\w-]+)", pages, re.MULTILINE))
    assert len(named) > 8
    assert sorted(named - targets) == []


# ---- tables of the pages for those who come from elsewhere


TABLES = {
    "from-chatopenai": "langchain_vllm_local.ChatVLLM",
    "from-chatollama": "langchain_vllm_local.ChatVLLM",
    "from-community-vllm": "langchain_vllm_local.VLLM",
    "from-llama-index-vllm": "llama_index_vllm_local.VLLM",
    "from-openai-like": "llama_index_vllm_local.VLLM",
}
OF_A_CALL = {"n", "response_format", "lora", "with_structured_output"}
"""Not of each constructor."""
SAID = {
    "from-chatopenai": ("model", "base_url", "api_key", "stop", "max_tokens", "timeout", "extra_body",
        "chat_template_kwargs", "stream_usage"),
    "from-chatollama": ("model", "base_url"),
    "from-community-vllm": ("model_name",),
    "from-llama-index-vllm": ("messages_to_prompt", "completion_to_prompt", "is_chat_model"),
    "from-openai-like": (
        "context_window", "is_chat_model", "is_function_calling_model", "tokenizer", "timeout",
    ),
}  # fmt: skip
"""Names that are taken, and mean a little else: the row says what."""


def rows(page: str) -> list[list[str]]:
    text = (REPOSITORY / "docs" / f"{page}.md").read_text().partition("## Settings\n")[2].partition("\n## ")[0]
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return found[1:]


def names_in(cell: str) -> list[str]:
    return [name for name in re.findall(r"`([a-z_]+)(?:=[^`]*)?`", cell) if name not in OF_A_CALL]


def is_taken(model_class: type, name: str) -> bool:
    """Whether a constructor knows it, whatever its value may be."""
    try:
        model_class(**{name: None})
    except SettingsError as error:
        return f"unknown setting {name!r}" not in str(error)
    return True


@pytest.mark.parametrize("page", TABLES)
def test_old_names_lead_to_names_that_there_are_and_none_is_taken_without_a_word(page: str) -> None:
    module, _, name = TABLES[page].rpartition(".")
    model_class = getattr(importlib.import_module(module), name)
    assert len(rows(page)) >= 8
    for old, new in rows(page):
        taken = [name for name in names_in(old) if is_taken(model_class, name)]
        if new.startswith("the same"):
            assert taken == names_in(old)
            continue
        assert [name for name in taken if f"`{name}` works too" not in new and name not in SAID.get(page, ())] == []
        if not new.startswith("not "):
            first = new.partition(".")[0].partition(";")[0]
            assert [name for name in names_in(first) if not is_taken(model_class, name)] == [], new
