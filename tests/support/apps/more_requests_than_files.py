"""Asks 300 times at once, and may open 100 files."""

import asyncio
import json
import resource
import sys

resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

from shared_engine import Engine


async def main() -> None:
    engine = Engine(**json.loads(sys.argv[1]))
    message = [{"role": "user", "content": "Hello"}]
    print(len(await asyncio.gather(*(engine.achat(message, max_tokens=2) for _ in range(300)))))


asyncio.run(main())
