"""Two engines on this machine behind one model: the second one starts when the first has all that it takes.

Usage: python replicas.py [MODEL]
"""

import sys

from langchain_vllm_local import ChatVLLM

model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen3-0.6B"
# On GPUs: gpu_ids=[0, 1], or [[0, 1], [2, 3]]. On a CPU each has half of the cores.
llm = ChatVLLM(model=model, replicas=2, temperature=0, max_tokens=32, engine_args={"max_num_seqs": 4})

print(llm.invoke("What is the capital of France?").text)
countries = ("France", "Italy", "Spain", "Japan") * 20
answers = llm.batch([f"What is the capital of {country}?" for country in countries])
print(f"{len(answers)} answers, {len({answer.text for answer in answers})} of them different")
for replica in llm.engine.stats().members:
    print(f"{replica.member}: {replica.requests.successes} requests")
