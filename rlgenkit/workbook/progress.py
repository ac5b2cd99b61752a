"""Progress of a phase: one line, updated in place in a kernel, at most ten lines in a terminal."""

from __future__ import annotations

import os
import time
from typing import Any


def kernel() -> Any:
    """The IPython shell if this process is a Jupyter kernel, else None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def headless() -> bool:
    """True when nobody is there: no kernel, papermill, nbval, nbconvert, or RLGENKIT_HEADLESS=1.

    A front end that shows a notebook to a person answers input requests; the runners do not.
    """
    shell = kernel()
    if shell is None or os.environ.get("RLGENKIT_HEADLESS"):
        return True
    return not getattr(shell.kernel, "_allow_stdin", False)


class Progress:
    """Call `update` after every step and `close` once; the summary is the only line that stays.

    The summary holds no times, so that executed notebooks differ only where numbers do.
    """

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name, self.total, self.first = name, total, done
        self.begin = time.monotonic()
        self.next = self.begin + 1.0
        self.shown_tenth = 10 * done // max(total, 1)
        self.handle = None

    def update(self, done: int, values: str = "") -> None:
        """done: finished steps of `total`."""
        now, tenth = time.monotonic(), 10 * done // max(self.total, 1)
        if done == self.total or (now < self.next if kernel() else tenth == self.shown_tenth):
            return
        rest = (now - self.begin) / max(done - self.first, 1) * (self.total - done)
        self.next = now + max(1.0, rest / 10)
        self.shown_tenth = tenth
        self._show(f"{self.name}: {done}/{self.total} steps, about {rest:.0f} s left  {values}")

    def close(self, summary: str) -> None:
        self._show(f"{self.name}: {summary}")

    def _show(self, line: str) -> None:
        if kernel() is None:
            print(line, flush=True)
            return
        from IPython.display import display

        data = {"text/plain": line.rstrip()}
        if self.handle is None:
            self.handle = display(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)
