"""What the ``vllm-local`` command exits with."""

DONE = 0
"""For doctor: nothing failed; there may be warnings. Also for ``status --watch`` that is left with Ctrl-C."""
FAILED = 1
"""The reason is on stderr."""
USAGE = 2
"""An option, a setting or the input must be corrected; argparse's own too."""
BUSY = 3
"""Requests in flight forbade stop or evict for all of --timeout."""
SOME_FAILED = 4
"""batch, embed, rerank: all is answered, some of it by an error."""
INTERRUPTED = 130
"""Ctrl-C; for batch also SIGTERM."""
READER_LEFT = 141
"""The reader of the output closed it, as in ``vllm-local status | head -1``."""
