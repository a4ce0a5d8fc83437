"""What worker processes of this package's commands have in common."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Prepare a worker: it leaves Ctrl+C to its parent, and ends at once, even in the middle of a file, when that does.

    A parent that is killed cannot end its workers itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
