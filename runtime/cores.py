"""Whether the threads of this process get the cores that they ask for."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Waiting"]


def waited() -> float:
    """Seconds that the process's threads have waited for a core so far; 0 where the system does not tell.

    Linux counts them per thread (the second field of ``schedstat``, in nanoseconds).
    """
    total = 0
    try:
        for thread in os.listdir("/proc/self/task"):
            total += int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux, or a thread that has just ended
        return 0.0
    return total / 1e9


class Waiting:
    """The share of the time since it was made that threads waited for a core, all of them together."""

    def __init__(self) -> None:
        self._waited, self._start = waited(), time.monotonic()

    def share(self) -> float:
        return max(0.0, waited() - self._waited) / max(time.monotonic() - self._start, 1e-9)
