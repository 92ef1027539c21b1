"""Works for as long as a test looks on: 128 answers of 1500 tokens."""

import json
import sys

from shared_engine import Engine

engine = Engine(**json.loads(sys.argv[1]))
engine.generate_batch(["Hello"] * 128, max_tokens=1500, extra_body={"ignore_eos": True})
