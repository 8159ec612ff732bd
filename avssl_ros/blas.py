"""Numpy's matrix products on one thread while the encoders need the cores.

OpenBLAS's threads wait for the next product by spinning, tens of milliseconds after each. Products of the size that
clustering and fusion make gain nothing from them, and the networks lose a core: on 2 cores a step took 89 ms with them
and 61 ms without, in half the processor time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache

from threadpoolctl import ThreadpoolController


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")  # reads the list of loaded libraries: milliseconds


def one_thread() -> AbstractContextManager:
    """Within it, BLAS works on one thread in the whole process; afterwards as before."""
    return _libraries().limit(limits=1)
