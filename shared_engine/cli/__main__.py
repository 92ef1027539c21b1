"""``python -m shared_engine.cli``: the ``vllm-local`` command."""

import sys

from shared_engine.cli.main import main

sys.exit(main())
