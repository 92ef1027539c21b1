"""The command's first module: from here on Ctrl-C ends it without a traceback, also while it imports the others."""

import sys

from shared_engine.cli.interrupts import end_at_once

end_at_once()

from shared_engine.cli.main import main


def run() -> None:
    """Run the command, as a program of its own."""
    try:
        code = main()
    finally:
        end_at_once()  # Python's own end is nothing to interrupt with a traceback
    sys.exit(code)
