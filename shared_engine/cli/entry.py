"""The command's first module: from here on Ctrl-C ends it without a traceback, also while it imports the others."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as in the background
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from shared_engine.cli.main import main


def run() -> None:
    """Run the command, as a program of its own."""
    is_heeded = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    try:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    finally:
        if is_heeded:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)
