"""What README, docs/ and examples/ show, run as a user would; `make demo` as a whole."""

from __future__ import annotations

import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.remote_server import running_server
from tests.support.vision_model import png

README_BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
MAKE_COMMANDS = re.findall(r"^make (\w+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
EXAMPLES = REPOSITORY / "examples"
CAPITALS = [f"The capital of {where}." for where in ("France is Paris", "Italy is Rome", "Spain is Madrid")]
SIZE = "gpu_memory_utilization=0.3"
SIZE_OF_EMBEDDER = "gpu_memory_utilization=0.1"
PASSWORD = "The password of the archive is blue-heron-42."


def run(*command: str, cwd: Path = REPOSITORY) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def keywords(settings: dict[str, Any]) -> str:
    """As they are written in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def sides_of_swap(name: str) -> tuple[str, str]:
    """The code before and after ``swap_from_NAME.diff``, which is Python, and a diff that ``patch`` takes."""
    head, *lines = (EXAMPLES / f"swap_from_{name}.diff").read_text().splitlines()[2:]
    before = [line[1:] for line in lines if line[0] in " -"]
    after = [line[1:] for line in lines if line[0] in " +"]
    assert head == f"@@ -1,{len(before)} +1,{len(after)} @@", "so that patch takes it"
    for side in (before, after):
        compile("\n".join(side), name, "exec")
    return "\n".join(before), "\n".join(after)


@pytest.fixture(autouse=True)
def schemas_are_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny_chat takes a limit in a schema for the answer."""
    monkeypatch.setenv("VLLM_SHOW_SCHEMA", "false")


@pytest.fixture
def example(tiny_chat: dict[str, Any], minilm: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """Runs an example as it stands, but for how large its engines are: on those of the test run, which are up already.

    The demo runs two of them with nothing changed, and with the sizes that all have.
    """

    def run_example(name: str, *arguments: str) -> str:
        code = (EXAMPLES / f"{name}.py").read_text()
        assert SIZE in code
        for written, settings in ((SIZE, tiny_chat), (SIZE_OF_EMBEDDER, minilm)):
            code = code.replace(written, keywords({**settings, "model": None}).replace("model=None, ", ""))
        file = tmp_path / f"{name}.py"
        file.write_text(code)
        return run(str(file), str(TINY_CHAT), *arguments)

    return run_example


class PassOn(socketserver.BaseRequestHandler):
    """What one connection says goes on to a Unix socket, and the other way round."""

    server: Door

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(self.server.path)
            back = threading.Thread(target=copy, args=(engine, self.request))
            back.start()
            copy(self.request, engine)
            back.join()


class Door(socketserver.ThreadingTCPServer):
    """A free port of this machine that leads to the Unix socket ``path``."""

    def __init__(self, path: str) -> None:
        super().__init__(("127.0.0.1", 0), PassOn)
        self.path = path


def copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def base_url(tiny_chat: dict[str, Any]) -> Iterator[str]:
    """A URL of the run's own vLLM, which listens on a Unix socket."""
    engine = Engine(**tiny_chat)
    engine.warmup()
    path = engine.status().socket
    assert path is not None
    with Door(path) as door:
        thread = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{door.server_address[1]}/v1"
        door.shutdown()
        thread.join(10)


# ---- README and docs


@pytest.mark.parametrize("index", range(len(README_BLOCKS)))
def test_readme_code_runs(index: int, tiny_chat: dict[str, Any]) -> None:
    """As it stands, but for the model: the test run's own engine in place of one from the hub."""
    block = README_BLOCKS[index]
    if "base_url=" in block:  # a remote server: constructing it is all that can be shown here
        block = "from langchain_vllm_local import ChatVLLM\n" + block
    else:
        block = block.replace('model="Qwen/Qwen3-4B"', keywords(tiny_chat))
        assert str(TINY_CHAT) in block
    out = run("-c", block)
    expected = {"ChatVLLM(model": "Paris", "SummaryIndex": "1936", "chat_batch": "EngineState.READY"}
    for mark, text in expected.items():
        if mark in block:
            assert text in out


def test_the_code_of_the_first_five_minutes_runs(tiny_chat: dict[str, Any]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "start.md").read_text(), re.DOTALL))
    written = 'model="Qwen/Qwen3-0.6B"'
    assert code.count(written) == 3
    assert run("-c", code.replace(written, keywords(tiny_chat))).splitlines() == [
        *(CAPITALS[0], "1, 2, 3, 4, 5, 6, 7, 8, 9, 10", *CAPITALS),
        "The Norling bridge was opened in 1936.",
        f"{CAPITALS[0]} 11",
    ]


def test_the_code_in_the_docs_of_langchain_runs(
    tiny_chat: dict[str, Any], minilm: dict[str, Any], base_url: str, tmp_path: Path
) -> None:
    writer = {'model="Qwen/Qwen3-4B-Base"': keywords(tiny_chat)}
    text = run_docs("langchain", tmp_path, {**stand_ins(tiny_chat, minilm, base_url), **writer})
    for line in (
        "['The capital of Italy is Rome.', 'The capital of Spain is Madrid.']",
        "name='Anna Smith' age=31",
        "blue",
        "['reasoning', 'text']",
        "['AIMessage', 'AIMessage', 'AIMessage', 'ContextLengthError']",
        "2048 True True",
        "10012 2048",
        "The Rhine flows through Basel.",
        "The capital of France is Paris.",
    ):
        assert line in text.splitlines(), text
    assert len(re.findall(r"^\[\{'name': 'add', 'args': \{'a': 2, 'b': 3\}", text, re.MULTILINE)) == 2
    assert "None LengthFinishReasonError(" in text
    assert re.search(r"^0\.\d+ The violin has four strings\.$", text, re.MULTILINE)


def test_the_code_in_the_docs_of_llama_index_runs(
    tiny_chat: dict[str, Any], minilm: dict[str, Any], base_url: str, tmp_path: Path
) -> None:
    text = run_docs("llama_index", tmp_path, stand_ins(tiny_chat, minilm, base_url))
    bridge, call = "The Norling bridge was opened in 1936.", "[('add', {'a': 2, 'b': 3})]"
    assert re.sub(r"^(0\.\d\d) ", "SCORE ", text, flags=re.MULTILINE).splitlines() == [
        "The capital of Germany is Berlin.",
        "The capital of France is Paris. 11 stop",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
        "['The capital of Italy is Rome.', 'The capital of Spain is Madrid.']",
        *(bridge, f"SCORE {bridge}", bridge),
        *("5", call, call, call),
        *("add {'a': 2, 'b': 3} 5", "The result is 5."),
        *("name='Anna Smith' age=31", "True name='Anna Smith' age=31", "31 True", 'cut off: {"name": "An', "blue"),
        "['thinking', 'text']",
        "Hi",
        "['The capital of France is Paris.', 'The capital of Italy is Rome.', 'The capital of Spain is Madrid.']",
        "['CompletionResponse', 'CompletionResponse', 'CompletionResponse', 'ContextLengthError']",
        *("The capital of France is Paris | True", "19", "2048 True"),
        "10012 2048",
        "The capital of France is Paris.",
    ]


def test_the_code_in_the_docs_of_the_engine_runs(tiny_chat: dict[str, Any]) -> None:
    block = "\n".join(re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "engine.md").read_text(), re.DOTALL))
    settings = {**tiny_chat, "idle_ttl_s": 600}
    written = 'model="Qwen/Qwen3-4B", idle_ttl_s=600'
    assert written in block
    assert run("-c", block.replace(written, keywords(settings))).splitlines() == [
        f"{CAPITALS[0]} stop 11",
        CAPITALS[0],
        f"8 {{'{CAPITALS[0]}'}}",
        "10002 2048",
        "19 ready",
        "320",
    ]


def test_the_code_in_the_docs_of_the_context_budget_runs(tiny_chat: dict[str, Any]) -> None:
    pytest.importorskip("langchain_text_splitters")
    code = "\n".join(re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "context.md").read_text(), re.DOTALL))
    written = 'model="Qwen/Qwen3-4B"'
    assert code.count(written) == 3
    refused, lowered, plan, piece, documents, nodes = run("-c", code.replace(written, keywords(tiny_chat))).splitlines()
    assert refused == "10012 100 2048 8064"
    assert lowered == f"{CAPITALS[0]} 2029"
    assert re.fullmatch(r"\d+ 500 50 \d+ \(\d+, \d+\)", plan)
    assert piece
    assert re.fullmatch(r"\d+ {'source': 'rivers', 'start_index': \d+}", documents)
    assert re.fullmatch(r"\d+ \d+", nodes)


def test_the_code_in_the_docs_of_messages_runs(tiny_chat: dict[str, Any]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "messages.md").read_text(), re.DOTALL))
    written = 'model="Qwen/Qwen3-4B"'
    assert code.count(written) == 1
    answer, rest = run("-c", code.replace(written, keywords(tiny_chat))).splitlines()
    assert answer
    assert rest.strip() == "Paris."


def test_the_code_in_the_docs_of_lora_runs(lora_chat: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "lora.md").read_text(), re.DOTALL)
    code = "\n".join(blocks).replace('"/adapters', f'"{TINY_CHAT}/adapters')
    written = 'model="Qwen/Qwen3-4B", lora_adapters=adapters'
    assert written in code
    settings = keywords({name: value for name, value in lora_chat.items() if name != "lora_adapters"})
    assert run("-c", code.replace(written, f"{settings}, lora_adapters=adapters")).splitlines() == [
        *(CAPITALS[0], "Paris.", f"Gladly. {CAPITALS[0]}", "Paris.", "short", f"Paris. | {CAPITALS[0]}"),
        f"lora = 'brieff': there is no such adapter: {TINY_CHAT} has 'brief', 'polite'; "
        "add it to lora_adapters, or call Engine.load_adapter",
    ]


@pytest.mark.long
def test_the_code_in_the_docs_of_reproducible_answers_runs(tiny_chat: dict[str, Any]) -> None:
    page = (REPOSITORY / "docs" / "reproducible.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    written = 'model="Qwen/Qwen3-4B"'
    assert block.count(written) == 2
    assert run("-c", block.replace(written, keywords(tiny_chat))).splitlines() == [f"{{'{CAPITALS[0]}'}}"] * 2


def stand_ins(tiny_chat: dict[str, Any], minilm: dict[str, Any], base_url: str) -> dict[str, str]:
    """For the models and the server that both pages of docs/ name."""
    embedder = keywords(minilm)
    return {
        'model="Qwen/Qwen3-4B"': keywords(tiny_chat),
        'model="sentence-transformers/all-MiniLM-L6-v2", gpu_memory_utilization=0.1': embedder,
        'model="BAAI/bge-reranker-base", gpu_memory_utilization=0.1': embedder,
        'base_url="http://gpu-box:8000/v1"': keywords({"base_url": base_url}),
    }


def run_docs(page: str, folder: Path, stand_ins: dict[str, str]) -> str:
    """What a page's code prints, all of it, one block after the other, with stand-ins for what it names.

    The model that sees is a server that says "Hi"; what it would be sent is looked at.
    """
    (folder / "photo.jpg").write_bytes(png(255, 0, 0))
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / f"{page}.md").read_text(), re.DOTALL)
    code = "\n".join(blocks)
    with running_server() as seeing:
        stand_ins = {'model="Qwen/Qwen2.5-VL-3B-Instruct"': keywords({"base_url": seeing.url}), **stand_ins}
        for written, settings in stand_ins.items():
            assert written in code
            code = code.replace(written, settings)
        text = run("-c", code, cwd=folder)
        ((_, sent),) = seeing.requests
    assert sent["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,iVBOR")
    return text


def test_readme_names_only_make_targets_that_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert MAKE_COMMANDS
    for target in MAKE_COMMANDS:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# ---- examples


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("langchain_tools_agent", ("a: 12", "42", "b: 7", "The result is 294.")),
        (
            "langchain_structured_output",
            ("Person(name='Anna Smith', age=31)", "LengthFinishReasonError '{\"name", " None\nblue"),
        ),
        (
            "langchain_batch",
            ("64 answers, ", "3 The capital of Japan is Tokyo.", "ContextLengthError: ", "limit is 2048"),
        ),
        (
            "long_texts",
            (
                " tokens and 64 of an answer are ",
                " pieces of at most 1792 tokens, ",
                " tokens read, ",
                "max_tokens was lowered to ",
            ),
        ),
        (
            "openai_client",
            (
                "The capital of France is Paris.\n",
                "Function(arguments='{\"a\": 2, \"b\": 3}', name='add')\n",
                "\nname='Anna Smith' age=31\n400 ",
                "maximum context length is 2048",
            ),
        ),
        (
            "engine_metrics",
            ("9 answers, 1 prompt too long\n", " start, of which loading weights ", 'outcome="success"} 9.0'),
        ),
        (
            "langchain_lora",
            (
                f"{CAPITALS[0]}\nParis.\n{TINY_CHAT} {CAPITALS[0]} 11\n",
                f"brief Paris. 3\npolite Gladly. {CAPITALS[0]} 17\nParis.\n",
            ),
        ),
        (
            "llama_index_agent",
            ("add({'a': 12, 'b': 30}) = 42\nmultiply({'a': 42, 'b': 7}) = 294\nThe result is 294.\n2 tool calls\n",),
        ),
        (
            "llama_index_structured_output",
            (
                "Person(name='Anna Smith', age=31)\n",
                "\nname='Anna' age=None\n",
                "\nname='Anna Smith' age=31\n31 {\"name\":",
                "LengthFinishReasonError: the answer was cut off",
            ),
        ),
    ],
)
def test_example(example: Callable[..., str], name: str, answers: tuple[str, ...]) -> None:
    out = example(name)
    for answer in answers:
        assert answer in out


def test_langchain_streaming_example(example: Callable[..., str]) -> None:
    out = example("langchain_streaming")
    counted, end, *awaited, event_pieces = out.splitlines()
    assert counted.replace("|", "") == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    assert counted.count("|") > 5
    assert end.startswith("stop, {'input_tokens': 19")
    pieces = [re.fullmatch(r"What is the capital of (\w+)\? '(.*)'", line) for line in awaited]
    for country, answer in (("France", "Paris"), ("Italy", "Rome")):
        text = "".join(piece[2] for piece in pieces if piece and piece[1] == country)
        assert text == f"The capital of {country} is {answer}."
    assert event_pieces.replace("|", "") == "The capital of Spain is Madrid."


def test_llama_index_chat_example(example: Callable[..., str]) -> None:
    complete, chat, streamed, *several, too_long = example("llama_index_chat").splitlines()
    assert [complete, *several] == [*CAPITALS, "The capital of Japan is Tokyo."]
    assert chat.startswith("Your name is Ann. {'prompt_tokens': 39, 'completion_tokens': 9, 'total_tokens': 48")
    assert streamed.replace("|", "") == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    assert streamed.count("|") > 5
    assert re.match(r"ContextLengthError: .* 10012 tokens, and the model's limit is 2048", too_long)


def test_langchain_rag_example(example: Callable[..., str], minilm: dict[str, Any]) -> None:
    out = example("langchain_rag", minilm["model"])
    assert f"archive?\n  {PASSWORD}" in out
    assert "museum?\n  The director of the museum is Mara Lindt." in out


def test_llama_index_embeddings_example(example: Callable[..., str], minilm: dict[str, Any]) -> None:
    """The embedding model is the reranker, too; of the three documents that were found, it leaves one."""
    out = example("llama_index_embeddings", minilm["model"], minilm["model"]).splitlines()
    found = re.compile(r"  \(0\.\d\d: (.*)\)")
    texts = (PASSWORD, "The director of the museum is Mara Lindt.")
    assert out[1::3] == [f"  {text}" for text in texts]
    assert [match[1] for line in out[2::3] if (match := found.fullmatch(line))] == list(texts)
    assert len(out) == 6


def test_langchain_remote_example(base_url: str) -> None:
    out = run("examples/langchain_remote.py", base_url, "a key")
    assert f"{TINY_CHAT}: The capital of France is Paris." in out
    assert "1, 2, 3" in out


def test_llama_index_remote_example(base_url: str) -> None:
    out = run("examples/llama_index_remote.py", base_url, "a key")
    assert f"{TINY_CHAT}: The capital of France is Paris.\n1, 2, 3" in out
    assert "up to 2048 tokens" in out


def test_swapping_chat_openai_for_chat_vllm_gives_the_same_answers(base_url: str, tiny_chat: dict[str, Any]) -> None:
    before, after = sides_of_swap("openai")
    with_openai = before.replace("http://localhost:8000/v1", base_url).replace("Qwen/Qwen3-4B", str(TINY_CHAT))
    with_vllm = after.replace('model="Qwen/Qwen3-4B"', keywords(tiny_chat))
    out = run("-c", with_vllm)
    assert out.splitlines()[:3] == CAPITALS
    assert "'output_tokens'" in out
    assert run("-c", with_openai).splitlines()[:3] == out.splitlines()[:3]


def test_swapping_openai_like_for_vllm_answers(tiny_chat: dict[str, Any]) -> None:
    """The other side is not run: OpenAILike requires openai 2, and this environment has 3."""
    _, after = sides_of_swap("openai_like")
    *answers, counts = run("-c", after.replace('model="Qwen/Qwen3-4B"', keywords(tiny_chat))).splitlines()
    assert answers == [*CAPITALS[:2], PASSWORD]
    assert "'total_tokens': " in counts


def test_swapping_llama_index_vllm_for_vllm_answers(tiny_chat: dict[str, Any]) -> None:
    """The other side can't be run: Vllm fails on every call with the vLLM of today."""
    _, after = sides_of_swap("llama_index_vllm")
    out = run("-c", after.replace('model="Qwen/Qwen3-4B", max_model_len=8192', keywords(tiny_chat)))
    assert out.splitlines() == [CAPITALS[0], PASSWORD, PASSWORD]


def test_every_example_is_run_here_or_by_the_demo() -> None:
    here = Path(__file__).read_text() + Path(__file__).with_name("test_direct.py").read_text()
    demo = (EXAMPLES / "demo.py").read_text()
    names = [path.stem for path in EXAMPLES.glob("*_*.py")]
    assert len(names) >= 13
    for name in names:
        assert f'"{name}"' in here or f'"examples/{name}.py"' in here or f'"{name}.py"' in here + demo, name
    for path in EXAMPLES.glob("swap_from_*.diff"):
        assert f'sides_of_swap("{path.stem.removeprefix("swap_from_")}")' in here, path


def test_examples_are_short() -> None:
    for path in (REPOSITORY / "examples").glob("*.py"):
        if path.name != "demo.py":
            assert len(path.read_text().splitlines()) <= 40, path


@pytest.mark.apart
def test_the_demo_shows_right_answers_one_start_and_leaves_nothing(runtime_root: Path) -> None:
    assert SIZE in (EXAMPLES / "demo.py").read_text()
    out = run("examples/demo.py")
    for answer in ("blue-heron-42", "I don't know", "Ada Norling in 1987", "Mara Lindt"):
        assert answer in out
    assert len(re.findall(r"tokens: \d+ in, \d+ out", out)) == 2
    assert "started 1 time(s)" in out
    assert out.count("starting -> ready") == 1, "shown after both examples"
    assert "everything ended" in out
    assert not list(Path("/tmp").glob("vld-*")), "its runtime directory is gone too"
