"""Asks an engine under this app itself; prints the answers as JSON. Run by the Python that has vLLM.

A script as beginners write it: no ``if __name__ == "__main__"`` around it.
"""

import json
import sys

from shared_engine import Engine
from tests.support.questions import answers_of

print("begun", flush=True)
engine = Engine(**json.loads(sys.argv[1]), mode="direct")
print(json.dumps(answers_of(engine)), flush=True)
