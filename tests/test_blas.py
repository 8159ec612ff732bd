"""Matrix products keep to one thread where they must, whichever thread asks, and have all of them back afterwards."""

import threading

import numpy as np
from threadpoolctl import threadpool_info

from avssl_ros import blas


def threads_of_blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_one_thread_within_and_all_as_before_afterwards():
    assert np.ones((4, 4)).sum() == 16  # numpy's BLAS is loaded
    before, within = threads_of_blas(), []

    def work():
        with blas.one_thread():
            within.append(threads_of_blas())

    work()
    other = threading.Thread(target=work)  # the node localizes in another thread than the one that warmed up
    other.start()
    other.join()
    assert within == [{1}, {1}]
    assert threads_of_blas() == before


def test_an_error_within_leaves_the_threads_as_before():
    before = threads_of_blas()
    try:
        with blas.one_thread():
            raise RuntimeError("an image failed")
    except RuntimeError:
        pass
    assert threads_of_blas() == before


def test_the_last_of_several_that_overlap_gives_the_threads_back():
    before, within = threads_of_blas(), []
    inside, first_left = threading.Event(), threading.Event()

    def work():
        with blas.one_thread():
            inside.set()
            first_left.wait(5)
            within.append(threads_of_blas())

    other = threading.Thread(target=work)
    with blas.one_thread():
        other.start()
        assert inside.wait(5)
    first_left.set()
    other.join()
    assert within == [{1}] and threads_of_blas() == before
