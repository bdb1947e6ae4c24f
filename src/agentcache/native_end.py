"""Joining threads that ran native code, down to the last of it."""

import threading
import time
from pathlib import Path

_LONGEST = 5.0


def join(thread: threading.Thread) -> None:
    """Join `thread` and wait, at most 5 s more, until the system has no such thread either.

    Before Python 3.13, `Thread.join` returns while a thread's C++ thread-locals are still being
    destroyed. MLX's need the interpreter for that, and abort the process if it is gone by then.
    Where there is no /proc (macOS) there is no way to tell; the interpreter is seldom that quick.
    """
    if thread.native_id is None:  # never started
        return
    thread.join()
    entry = Path(f"/proc/self/task/{thread.native_id}")
    until = time.monotonic() + _LONGEST
    while entry.exists() and time.monotonic() < until:
        time.sleep(0.001)
