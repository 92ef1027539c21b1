"""LlamaIndex's OpenAILike, gathered, round by round on request. Runs in the peers' Python, behind child.py."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from questions import Answer, questions


def main() -> None:
    options = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=options["model"],
        api_base=options["url"] + "/v1",
        api_key="none",
        is_chat_model=True,
        temperature=0,
        max_tokens=options["tokens"],
        additional_kwargs={"extra_body": {"ignore_eos": True}},
        timeout=600,
        reuse_client=True,
    )

    async def gathered(count: int) -> list[Any]:
        return await asyncio.gather(*(llm.achat([ChatMessage(content=text)]) for text in questions(count)))

    with asyncio.Runner() as runner:
        replies.write(json.dumps({}) + "\n")
        for line in sys.stdin:
            count = json.loads(line)["count"]
            began = time.perf_counter()
            responses = runner.run(gathered(count))
            seconds = time.perf_counter() - began
            usages = [response.raw.usage for response in responses]
            came = [
                Answer(usage.prompt_tokens, usage.completion_tokens, response.message.content)
                for usage, response in zip(usages, responses, strict=True)
            ]
            replies.write(json.dumps({"seconds": seconds, "came": came}) + "\n")


if __name__ == "__main__":
    main()
