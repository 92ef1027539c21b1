"""What a call shows while it waits for an engine to start: a bar on a terminal or in a notebook, else log lines.

Showing never makes a request fail. tqdm is imported when a bar is really drawn.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import logging
import os
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from shared_engine.machine.hub_cache import called
from shared_engine.runtime.progress import Progress, StartPhase

SHOW_AFTER_S = 1.0
TICK_S = 1.0

_log = logging.getLogger("shared_engine")


class StartReporter:
    """Shows what one call, or all calls of one event loop, wait for. Construct it on the loop, and close it there.

    Nothing is shown in the first SHOW_AFTER_S seconds. All reporters of one model in this process share one bar. Where
    none can be drawn, or ``show_progress`` is False, each phase is logged once.
    """

    def __init__(self, model: str, show_progress: bool) -> None:
        self.wants_bar = show_progress
        self.loop = asyncio.get_running_loop()
        self._wait = _join(model, self)
        self._timer = self.loop.call_later(SHOW_AFTER_S, self._tick)

    def report(self, progress: Progress) -> None:
        with contextlib.suppress(Exception):
            self._wait.follow(progress)

    def close(self, error: BaseException | None) -> None:
        """The engine is ready, or its start failed with ``error``, or the caller has left."""
        self._timer.cancel()
        with contextlib.suppress(Exception):
            self._wait.leave(self, is_ready=error is None)

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK_S, self._tick)  # elapsed time goes on when no report comes
        with contextlib.suppress(Exception):
            self._wait.show()


class _Wait:
    """All waiting for one model: one bar, or one series of log lines."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._name = called(model) or model
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self.reporters: set[StartReporter] = set()
        self._is_shown = False
        self._bar: Any = None
        self._can_draw = True
        self._logged: set[StartPhase] = set()

    def follow(self, progress: Progress) -> None:
        if progress == self._progress:
            return
        self._progress = progress
        if self._is_shown:
            self.show()

    def show(self) -> None:
        self._is_shown = True
        with _guard:
            self._draw()
            progress = self._progress
            if self._bar is not None or progress is None or progress.phase in self._logged:
                return
            self._logged.add(progress.phase)
        words = replace(progress, done=0, total=0)
        _log.info("%s is not ready yet: %s, after %.1f s", self._name, words, self._elapsed_s())

    def leave(self, reporter: StartReporter, *, is_ready: bool) -> None:
        with _guard:
            self.reporters.discard(reporter)
            if self._bar is not None and not self._is_bar_wanted():
                self.erase()
            if not self.reporters and _waits.get(self._model) is self:
                del _waits[self._model]
        if is_ready and self._logged:
            self._logged.clear()
            _log.info("%s is ready, after %.1f s", self._name, self._elapsed_s())

    def erase(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def erase_for_good(self) -> None:
        self._can_draw = False
        self.erase()

    def abandon_in_child(self) -> None:
        """The bar is the parent's: neither draw nor erase it."""
        self._can_draw = False
        bar, self._bar = self._bar, None
        if bar is not None:
            type(bar)._instances.discard(bar)  # else the child's own bar would stand one line lower

    def _draw(self) -> None:
        if not self._can_draw or not self._is_bar_wanted():
            return
        try:
            if self._bar is None:
                self._bar = new_bar(**self._look())
            else:
                redraw(self._bar, **self._look())
        except Exception:
            self._can_draw = False
            with contextlib.suppress(Exception):
                self.erase()
        if self._bar is None:
            self._can_draw = False

    def _look(self) -> dict[str, Any]:
        progress = self._progress
        text = f"{self._name}: {progress or 'starting'}".replace("{", "{{").replace("}", "}}")
        minutes, seconds = divmod(int(self._elapsed_s()), 60)
        clock = f"{minutes:02d}:{seconds:02d}"
        if progress is None or not progress.total:
            # tqdm fits a line to the terminal only if it has a place for a bar: a blank one here.
            return {"bar_format": f"{text} {{bar}}  {clock}", "done": 0, "total": None}
        return {"bar_format": f"{text} |{{bar}}| {clock}", "done": progress.done, "total": progress.total}

    def _is_bar_wanted(self) -> bool:
        return any(reporter.wants_bar for reporter in self.reporters)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began


_waits: dict[str, _Wait] = {}
_guard = threading.RLock()


def _join(model: str, reporter: StartReporter) -> _Wait:
    with _guard:
        wait = _waits.get(model)
        # A loop that was closed while it waited never closes its reporters.
        if wait is None or all(each.loop.is_closed() for each in wait.reporters):
            if wait is not None:
                wait.erase_for_good()
            wait = _waits[model] = _Wait(model)
        wait.reporters.add(reporter)
        return wait


def new_bar(bar_format: str, done: int, total: int | None) -> Any:
    """A bar of tqdm, drawn; None where none can be, or the user has disabled tqdm's (TQDM_DISABLE=1)."""
    if _is_notebook():
        from tqdm.notebook import tqdm  # type: ignore[import-untyped]
    elif sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from tqdm.std import tqdm  # type: ignore[import-untyped]
    else:
        return None
    width = {"ncols": 79, "nrows": 24} if _has_no_size() else {"dynamic_ncols": True}
    bar = _quiet(tqdm)(initial=done, total=total, bar_format=bar_format, leave=False, **width)
    return None if bar.disable else bar


def _has_no_size() -> bool:
    """True of some terminals in containers and CI: they report no columns, and tqdm would draw nothing."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError):  # no file descriptor: a notebook
        return False


def _quiet(tqdm: Any) -> Any:
    """tqdm, changed for use in a library: no thread of its own, no lock left behind, nothing written by its __del__.

    The lock is the user's bars' if they have one, so that lines don't mix; tqdm's default would be one across
    processes, which Python 3.14 makes with a process of its own.
    """

    def refresh(bar: Any, nolock: bool = False, lock_args: Any = None) -> None:  # noqa: ARG001
        with bar.get_lock():  # tqdm's own refresh keeps the lock when writing fails, and all bars of the app wait
            bar.display()

    changes = {"monitor_interval": 0, "__del__": lambda _: None, "refresh": refresh}
    if not hasattr(tqdm, "_lock"):
        changes["_lock"] = _drawing
    return type("StartBar", (tqdm,), changes)


_drawing = threading.RLock()


def redraw(bar: Any, bar_format: str, done: int, total: int | None) -> None:
    bar.bar_format = bar_format
    if total is not None and total != bar.total:
        bar.reset(total)  # updates a notebook's widget as well
    bar.total = total
    bar.n = done
    bar.refresh()


def _is_notebook() -> bool:
    """True in a kernel whose front end can show widgets."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config and importlib.util.find_spec("ipywidgets") is not None


@atexit.register
def _erase_at_exit() -> None:
    with _guard:
        for wait in _waits.values():
            with contextlib.suppress(Exception):
                wait.erase_for_good()


def _forget_in_child() -> None:
    global _guard, _drawing
    _guard = threading.RLock()
    _drawing = threading.RLock()
    for wait in _waits.values():
        wait.abandon_in_child()
    _waits.clear()


os.register_at_fork(after_in_child=_forget_in_child)
