"""Numpy's matrix products on one thread while the encoders need the cores.

OpenBLAS's threads wait for the next product by spinning, tens of milliseconds after each. Products of the size that
clustering and fusion make gain nothing from them, and the networks lose a core: on 2 cores a step took 89 ms with them
and 61 ms without, in half the processor time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import threadpoolctl

_lock = threading.Lock()
_within = 0  # how many are within `one_thread` now
_limit = None  # what the first of them set, for the last of them to take back


@lru_cache(maxsize=1)
def _libraries() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")  # reads the loaded libraries: milliseconds


def _let_any_thread_set() -> None:
    """From threadpoolctl 3.8 on, what another thread than the first that set OpenBLAS's threads sets is ignored."""
    clear = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, BLAS works on one thread in the whole process; as before once no thread is within it any more."""
    global _within, _limit
    with _lock:
        if _within == 0:
            _let_any_thread_set()
            _limit = _libraries().limit(limits=1)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                _let_any_thread_set()
                _limit.restore_original_limits()
                _let_any_thread_set()  # whoever else wants to
