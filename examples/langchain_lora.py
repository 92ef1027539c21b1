"""LoRA adapters: the model and each of its adapters answer from one engine, also within one batch."""

import sys
from pathlib import Path

from langchain_core.runnables import ConfigurableField

from langchain_vllm_local import ChatVLLM

# On a GPU, with adapters of your own: ChatVLLM(model="Qwen/Qwen3-4B", lora_adapters={"sql": "/adapters/sql"}).
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
adapters = {name: f"{model}/adapters/{name}" for name in ("brief", "polite")}
llm = ChatVLLM(model=model, lora_adapters=adapters, temperature=0, max_tokens=64, gpu_memory_utilization=0.3)

question = "What is the capital of France?"
print(llm.invoke(question).text)
print(llm.invoke(question, lora="brief").text)

# One chain, whose adapter each call chooses; a batch may mix them.
chosen = llm.configurable_fields(lora=ConfigurableField(id="lora"))
configs = [{"configurable": {"lora": name}} for name in (None, "brief", "polite")]
for answer in chosen.batch([question] * 3, configs):
    print(answer.response_metadata["model_name"], answer.text, answer.usage_metadata["output_tokens"])

# At run time: loaded now, and again by itself when the engine has been evicted.
llm.engine.load_adapter("short", adapters["brief"])
llm.engine.evict()
print(llm.invoke(question, lora="short").text)
llm.engine.unload_adapter("short")
