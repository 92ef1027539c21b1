"""Asks an engine under this app itself, without a framework and with both; prints the answers as JSON.

A script as beginners write it: no ``if __name__ == "__main__"`` around it. Run by the Python that has vLLM.
"""

import json
import os
import sys

sys.path.append(os.environ["PACKAGES_BESIDE"])

from shared_engine import Engine
from tests.support.questions import answers_of, answers_of_adapters

print("begun", flush=True)
settings = {**json.loads(sys.argv[1]), "mode": "direct"}
engine = Engine(**settings)
print(json.dumps({**answers_of(engine), **answers_of_adapters(settings)}), flush=True)
print(engine.status().starts)
