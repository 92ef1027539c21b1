"""Both frameworks with equal settings share one engine: in one process, and in two."""

from __future__ import annotations

import json
import time
from typing import Any

from langchain_vllm_local import VLLM as LangChainVLLM
from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM as LlamaIndexVLLM
from shared_engine import Engine
from shared_engine.machine.proc import cpu_seconds
from tests.support.processes import processes_of_group, run_code

ASK = {
    "langchain": "from langchain_vllm_local import ChatVLLM as Model; ask = lambda m: m.invoke('Hello').text",
    "llama_index": "from llama_index_vllm_local import VLLM as Model; ask = lambda m: m.complete('Hello').text",
}
REST = """
import json, sys
model = Model(**json.loads(sys.argv[1]))
assert ask(model)
print(model.engine.status().server_pid)
"""


def test_in_one_process(tiny_chat: dict[str, Any]) -> None:
    chat, text, index = ChatVLLM(**tiny_chat), LangChainVLLM(**tiny_chat, max_tokens=4), LlamaIndexVLLM(**tiny_chat)
    assert chat.invoke("Hello").text
    assert text.invoke("Hello")
    assert index.complete("Hello").text
    statuses = [engine.status() for engine in (chat.engine, text.engine, index.engine)]
    assert len({status.server_pid for status in statuses}) == 1
    assert statuses[0].server_pid == Engine(**tiny_chat).status().server_pid


def test_in_two_processes(tiny_chat: dict[str, Any]) -> None:
    apps = [run_code(code + REST, json.dumps(tiny_chat)) for code in ASK.values()]
    outputs = [app.communicate(timeout=120) for app in apps]
    assert [app.returncode for app in apps] == [0, 0], outputs
    assert {int(out) for out, _ in outputs} == {Engine(**tiny_chat).status().server_pid}


def test_an_engine_that_has_answered_leaves_the_processors_to_others(tiny_chat: dict[str, Any]) -> None:
    """Such as to one for embeddings: vLLM's workers would go on polling for a second."""
    engine = Engine(**tiny_chat)
    engine.generate("Hello", max_tokens=4)
    pid = engine.status().server_pid
    assert pid is not None
    pids = processes_of_group(pid)
    time.sleep(0.1)
    before = cpu_seconds(pids)
    time.sleep(0.7)  # the time in which it is to do nothing
    assert cpu_seconds(pids) - before < 0.2
