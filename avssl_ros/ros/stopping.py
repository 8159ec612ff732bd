"""SIGINT and SIGTERM from the first moment of a node's process to its last: they end it within 2 s, with status 0.

rclpy's own handlers close DDS at once, and nothing could be published any more. Ours differ by what the process does:

- until `hold`, while libraries are imported, there is nothing to tidy up and it exits at once (by os._exit: an
  exception in the midst of an import comes out of some C extensions as another one);
- within `at_once()`, while a node loads its models or opens its sensors, that is broken off;
- else `wanted` is set, and the loop ends by itself, so that a node can still say that its sources are gone.

Whatever hangs then, in a driver or in a library, is ended by force after LIMIT_SECONDS. This module imports nothing
that takes time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

LIMIT_SECONDS = 1.8

wanted = threading.Event()
_IMPORTING, _AT_ONCE, _HOLDING = range(3)
_phase = _IMPORTING
_listening = False


def listen() -> None:
    """Set the handlers, once; in the main thread."""
    global _listening
    if _listening:
        return
    _listening = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python's handlers wait for the main thread to return from where it is; this byte does not.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_by_force, args=(reader,), name="stopping", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)


def hold() -> None:
    """From now on a signal only sets `wanted`, except within `at_once()`."""
    global _phase
    _phase = _HOLDING


@contextmanager
def at_once():
    """Within, a signal raises SystemExit; one that came before does so at the beginning."""
    global _phase
    _phase = _AT_ONCE
    try:
        if wanted.is_set():
            raise SystemExit(0)
        yield
    finally:
        _phase = _HOLDING


def leave() -> None:
    """End the process with status 0 now: to take libraries down one by one takes a second, on a busy machine more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _on_signal(*_) -> None:
    is_first = not wanted.is_set()
    wanted.set()
    if _phase == _IMPORTING:
        os._exit(0)
    if is_first and _phase == _AT_ONCE:
        raise SystemExit(0)


def _end_by_force(pipe: int) -> None:
    while os.read(pipe, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
        pass  # another handler of this process
    time.sleep(LIMIT_SECONDS)
    os._exit(0)
