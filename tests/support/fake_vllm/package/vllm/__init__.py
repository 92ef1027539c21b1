"""A fake vLLM, for faults that the real one can't be made to show on demand. Standard library only.

``--fake '<JSON>'`` chooses the faults, and FAKE_VLLM_IMPORT (JSON too) those of the launcher: see fake_faults.py.
"""

import os

from vllm.fake_faults import Faults

__version__ = "0.32.0"

faults = Faults.read(os.environ.get("FAKE_VLLM_IMPORT", "{}"))
faults.reach("import")
os.register_at_fork(before=lambda: faults.reach("fork"))
