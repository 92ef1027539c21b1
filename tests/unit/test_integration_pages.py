"""The texts for LangChain's and LlamaIndex's own documentation: their code runs, and what they claim is so."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from llama_index.core import Settings
from llama_index.core.schema import NodeWithScore, TextNode

import langchain_vllm_local
from deploy.distributions.projects import DISTRIBUTIONS, PROJECT
from shared_engine import EngineSettings
from shared_engine.settings import ENVIRONMENT
from tests.support.doc_blocks import blocks_of, without_distributions
from tests.support.example_notebooks import code_cells, read, source_of
from tests.support.paths import REPOSITORY
from tests.support.pooling_server import embeds_and_reranks
from tests.support.remote_server import RemoteServer, chat_answer, running_server

FOLDER = REPOSITORY / "deploy" / "integrations"
LANGCHAIN, LLAMA_INDEX = FOLDER / "langchain", FOLDER / "llama_index"
NOTEBOOK = LLAMA_INDEX / "pages" / "vllm_local.ipynb"
HOSTED = sorted(LANGCHAIN.glob("pages/*/*.mdx"))
COMPONENTS = {"chat": "ChatVLLM", "embeddings": "VLLMEmbeddings", "retrievers": "VLLMRerank"}
"""Component of LangChain's -> our class, which has a page, a row and an issue there."""

HOME: str = PROJECT["urls"]["Homepage"]
PACKAGE = "langchain-vllm-local"
ANSWER = "The capital of France is Paris."
PERSON = {"name": "Anna Smith", "age": 31}
each_component = pytest.mark.parametrize("component", COMPONENTS)


# ---- code


async def answers_as_the_pages_have_it(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    if "input" in body or "documents" in body:
        return await embeds_and_reranks(request)
    answer = chat_answer(ANSWER)
    choice, message = answer["choices"][0], answer["choices"][0]["message"]
    if "response_format" in body:
        message["content"] = json.dumps(PERSON)
    elif "tools" in body and body["messages"][-1]["role"] != "tool":
        function = {"name": "add", "arguments": json.dumps({"a": 2, "b": 3})}
        message["tool_calls"] = [{"index": 0, "id": "call-1", "type": "function", "function": function}]
        choice["finish_reason"] = "tool_calls"
    elif body.get("chat_template_kwargs", {}).get("enable_thinking"):
        message["reasoning"] = "Two and three."
    if not body.get("stream"):
        return web.json_response(answer)
    event = {**answer, "choices": [{"index": 0, "delta": message, "finish_reason": choice["finish_reason"]}]}
    return web.Response(text=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    """Where everybody is sent, so that nothing is downloaded and started."""
    with running_server() as server:
        server.handler = answers_as_the_pages_have_it
        server.models = [{"id": "Qwen/Qwen3-4B", "max_model_len": 4096}]
        monkeypatch.setenv(ENVIRONMENT["base_url"], server.url)
        for name in ("_llm", "_embed_model"):  # what a page sets holds for its own code only
            monkeypatch.setattr(Settings, name, None)
        yield server


SHOWN = {
    "langchain/pages/chat/vllm_local.mdx": (
        *(ANSWER, "[{'type': 'text', 'text': 'The capital of France is Paris.'}]", "{'input_tokens': 3, "),
        *("[{'name': 'add', 'args': {'a': 2, 'b': 3}, ", "name='Anna Smith' age=31", "['reasoning', 'text']"),
    ),
    "langchain/pages/embeddings/vllm_local.mdx": ("A cat purrs when it is content.", "3 True", "2"),
    "langchain/pages/retrievers/vllm_local.mdx": ("A cat purrs when it is content. 0.31",),
    "llama_index/rows/node_postprocessors.md": (),
}
"""Beginnings of lines that a page's code prints here."""


@pytest.mark.slow
@pytest.mark.parametrize("page", SHOWN)
def test_the_code_of_a_page_runs(page: str, server: RemoteServer, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(block.code for block in blocks_of(FOLDER / page) if block.language == "python")
    for module in ("langchain", "langchain_classic", "numpy"):  # not in the environment of the oldest releases
        if re.search(rf"from {module}\b", code) or (module == "numpy" and "InMemoryVectorStore" in code):
            pytest.importorskip(module)
    code = without_distributions(code).replace("http://gpu-box:8000/v1", f"{server.url}/v1")
    names: dict[str, Any] = {"nodes": [NodeWithScore(node=TextNode(text="Norling"))]}
    exec(compile(code, page, "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    for beginning in SHOWN[page]:
        assert any(line.startswith(beginning) for line in lines), (beginning, lines)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect")
def test_the_code_of_the_notebook_runs(server: RemoteServer, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [source for cell in code_cells(read(NOTEBOOK)) if (source := source_of(cell))[0] not in "%!"]
    code = without_distributions("\n".join(cells)).replace("http://gpu-box:8000/v1", f"{server.url}/v1")

    async def run() -> None:
        ran = eval(compile(code, NOTEBOOK.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {"__name__": "__main__"})
        if inspect.isawaitable(ran):
            await ran

    with ThreadPoolExecutor(
        1
    ) as thread:  # asyncio.run would drop, unclosed, a loop that LlamaIndex has left in this one
        thread.submit(lambda: asyncio.run(run())).result()
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(ANSWER) >= 5
    for line in ("name='Anna Smith' age=31", "['thinking', 'text']", "The Norling bridge was opened in 1936."):
        assert any(shown.startswith(line) for shown in lines), (line, lines)


def test_the_notebook_has_the_form_of_those_beside_it_there_and_shows_no_outputs() -> None:
    notebook = read(NOTEBOOK)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert source_of(notebook["cells"][0]).startswith("# ")
    assert [cell for cell in code_cells(notebook) if cell["outputs"] or cell["execution_count"]] == []
    lines = [line for cell in code_cells(notebook) for line in source_of(cell).splitlines()]
    assert [line for line in lines if len(line) > 79] == [], "black's width there"
    assert [line.partition(" install ")[2] for line in lines if line.startswith("%pip")] == [
        each.name for each in DISTRIBUTIONS if each.module
    ]


# ---- what they claim


COLUMNS = {
    "Tool calling": "`bind_tools` of functions, pydantic, TypedDict, tools, dicts",
    "Structured output": "`json_schema`: pydantic, TypedDict, JSON schema",
    "Image input": "Image by base64",
    "Audio input": "Audio by base64",
    "Video input": "Video",
    "Token-level streaming": "Callbacks see each token",
    "Native async": "One object, several event loops",
    "Token usage": "Usage of a stream, without being asked",
    "Logprobs": "`logprobs`, `top_logprobs`",
    "Serializable": "Serialised without secrets, and loaded again",
}
"""Column of LangChain's tables -> row of our evidence."""
FLAGS = {
    "stream": "Token-level streaming",
    "tool_calling": "Tool calling",
    "structured_output": "Structured output",
    "multimodal": "Image input",
}


def evidence() -> dict[str, bool]:
    """Feature -> whether a test shows it of ChatVLLM."""
    lines = (REPOSITORY / "docs" / "evidence-langchain.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: not row[1].startswith(("not", "-")) for row in rows}


def columns_of(page: Path) -> dict[str, str]:
    """Column -> cell, of all tables of a page: each has one row."""
    found: dict[str, str] = {}
    for head, row in re.findall(r"^(\|.*\|)\n\| :.*\n(\|.*\|)$", page.read_text(), re.MULTILINE):
        names, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row))
        assert len(names) == len(cells), page
        found.update(zip((re.sub(r"^\[(.+)\]\(.+\)$", r"\1", name) for name in names), cells, strict=True))
    return found


def front_matter(page: Path) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(page.read_text().split("---\n")[1])
    return front


def listed() -> dict[str, dict[str, Any]]:
    """Component -> its one row."""
    rows = yaml.safe_load((LANGCHAIN / "rows" / "integration_external_docs.yaml").read_text())["python"]
    return {component: row for component, (row,) in rows.items()}


def test_each_mark_of_the_feature_tables_rests_on_evidence() -> None:
    shown, known = evidence(), columns_of(LANGCHAIN / "pages" / "chat" / "vllm_local.mdx")
    marked = {column: cell == "✅" for column, cell in known.items() if cell in ("✅", "❌")}
    assert marked.pop("JS support") is False
    assert marked == {column: shown[row] for column, row in COLUMNS.items()}


@each_component
def test_row_page_and_issue_of_a_component_say_the_same(component: str) -> None:
    row, front = listed()[component], front_matter(LANGCHAIN / "pages" / component / "vllm_local.mdx")
    issue = sections((LANGCHAIN / "issues" / f"{component}.md").read_text())
    assert hasattr(langchain_vllm_local, COMPONENTS[component])
    assert row["name"] == front["integration"]["name"] == issue["Display or class name"] == COMPONENTS[component]
    assert row["pypi"] == front["integration"]["pypi"] == issue["PyPI package name"] == PACKAGE
    assert row["docs_url"] == issue["Docs URL"]
    flags = {name: value for name, value in row.items() if name not in ("name", "pypi", "docs_url")}
    shown = evidence()
    assert flags == ({name: shown[COLUMNS[column]] for name, column in FLAGS.items()} if component == "chat" else {})
    assert (yaml.safe_load(issue["Capability flags (optional)"]) if flags else {}) == flags
    assert flags.items() <= front["integration"].items()
    assert issue["Component type"] == component
    assert f"https://github.com/{issue['Source repository']}" == HOME


def sections(issue: str) -> dict[str, str]:
    """Field -> value, as GitHub writes a filled-in form."""
    titles, values = re.findall(r"^### (.+)$", issue, re.MULTILINE), re.split(r"^### .+$", issue, flags=re.MULTILINE)
    return dict(zip(titles, (value.strip() for value in values[1:]), strict=True))


@each_component
def test_an_issue_has_the_fields_of_langchains_form(component: str) -> None:
    assert [*sections((LANGCHAIN / "issues" / f"{component}.md").read_text())] == [
        *("Display or class name", "Language", "Component type", "PyPI package name", "npm package name", "Docs URL"),
        *("Source repository", "Short provider description", "Capability flags (optional)", "Confirmations"),
    ]


def test_the_request_to_llamaindex_names_our_distributions_and_their_classes() -> None:
    issue = sections((LLAMA_INDEX / "issue.md").read_text())
    assert [*issue] == ["Feature Description", "Reason", "Value of Feature"]
    for distribution in DISTRIBUTIONS:
        if distribution.module:
            imported = f"from {distribution.module} import {', '.join(distribution.classes)}"
            link = f"[{distribution.name}](https://pypi.org/project/{distribution.name}/)"
            assert f"| {link} | `{imported}` |" in issue["Feature Description"]


def test_the_entry_in_the_list_of_packages_is_ours() -> None:
    (entry,) = yaml.safe_load((LANGCHAIN / "rows" / "packages.yml").read_text())
    assert entry["name"] in {each.name for each in DISTRIBUTIONS}
    assert f"https://github.com/{entry['repo']}" == HOME


def test_settings_that_the_texts_name_have_these_values() -> None:
    for text in ((LANGCHAIN / "pages" / "chat" / "vllm_local.mdx").read_text(), NOTEBOOK.read_text()):
        assert "30 minutes after its last request" in text
    assert EngineSettings(model="m").idle_ttl_s == 30 * 60
    assert ENVIRONMENT["api_key"] == "VLLM_API_KEY"


# ---- form


@pytest.mark.parametrize("page", HOSTED, ids=lambda page: page.parent.name)
def test_a_page_keeps_to_langchains_style(page: Path) -> None:
    _, front, body = page.read_text().split("---\n", 2)
    prose = re.sub(r"^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)
    assert set(yaml.safe_load(front)) >= {"title", "description"}
    assert not re.search(r"[`*\[]", front_matter(page)["description"])
    assert "\n---\n" not in body, "headings separate sections"
    assert re.findall(r"\w'\w+", prose.replace("model's", "")) == [], "no contractions"
    assert set(prose) - set(map(chr, range(128))) <= {"✅", "❌"}, "no dashes and quotes of typesetters"
    assert re.findall(r"\b(?:we|our|us|I|let's|will|simply|just|easily|very)\b", prose) == []
    assert re.findall(r"^#{5,} |^- [a-z]", prose, re.MULTILINE) == []
    assert re.findall(r"\]\((?!https://|/oss/)", prose) == []
    for opened in ("CodeGroup", "Columns", "Card"):
        assert len(re.findall(rf"<{opened}\b", body)) == body.count(f"</{opened}>")


def test_links_to_our_repository_lead_somewhere() -> None:
    found = 0
    for path in FOLDER.rglob("*.*"):
        for file, anchor in re.findall(rf"{HOME}/blob/main/([\w./-]+\w)(?:#([\w-]+))?", path.read_text()):
            found += 1
            page = (REPOSITORY / file).read_text()
            headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{path}: {file}#{anchor}"
    assert found > 10


def test_the_readme_names_each_file_and_no_other() -> None:
    readme = FOLDER / "README.md"
    links = re.findall(r"^\| (.+?) \|", readme.read_text(), re.MULTILINE)
    named = {FOLDER / link for cell in links for link in re.findall(r"\]\(([^)]+)\)", cell)}
    assert named == {path for path in FOLDER.rglob("*") if path.is_file()} - {readme}
