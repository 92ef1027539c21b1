"""Asks once, with a folder of installed packages that holds modules named as the standard library's."""

import asyncio  # noqa: F401  (the app's own are the right ones)
import dataclasses  # noqa: F401
import json
import sys
import typing  # noqa: F401

site = sys.argv[2]
sys.path.insert(0, site)

import shared_engine

assert shared_engine.__file__.startswith(site)
print(shared_engine.Engine(**json.loads(sys.argv[1])).chat([{"role": "user", "content": "Hello"}]).text)
