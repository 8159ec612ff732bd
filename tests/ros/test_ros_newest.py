"""The place between the callbacks and the worker: the newest item, once, never a queue."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from avssl_ros.ros.newest import Newest, next_start

pytestmark = pytest.mark.ros


def test_the_newest_item_is_taken_once_and_the_others_count_as_dropped():
    place = Newest()
    for item in "abc":
        place.put(item)
    assert place.take(0.1) == "c" and place.dropped == 2
    assert place.take(0.01) is None


def test_an_item_that_is_there_is_taken_however_late_it_is():
    place = Newest()
    place.put("a")
    assert place.take(-1.0) == "a"  # as after a pause of the whole process, which its time did not outlast


def test_an_item_wakes_a_waiting_taker():
    place = Newest()
    threading.Timer(0.1, place.put, ["a"]).start()
    start = time.monotonic()
    assert place.take(5.0) == "a" and time.monotonic() - start < 2.0


def test_nothing_is_taken_before_its_time_and_then_it_is_the_newest():
    place = Newest()
    place.put("old")
    due = time.monotonic() + 1.0  # long after the new one comes, on a busy machine as well
    threading.Timer(0.1, place.put, ["new"]).start()
    assert place.take(0.05, not_before=due) is None
    assert place.take(5.0, not_before=due) == "new" and time.monotonic() >= due


@pytest.mark.parametrize("rate, camera_rate, answered", [(15.0, 15.0, 15.0), (15.0, 30.0, 15.0), (0.0, 30.0, 30.0),
                                                         (15.0, 10.0, 10.0)])  # fmt: skip
def test_items_as_frequent_as_the_rate_do_not_wait_ever_longer(rate, camera_rate, answered):
    late = 0.001  # that a sleeping thread wakes up
    due, begun, waited = 0.0, [], []
    for arrived in 100 + np.arange(int(20 * camera_rate)) / camera_rate:
        if begun and arrived < due - 1 / camera_rate:
            continue  # replaced by the next before its turn comes
        begun.append(max(arrived, due) + late)
        waited.append(begun[-1] - arrived)
        due = next_start(due, rate, begun[-1])
    assert len(begun) == pytest.approx(20 * answered, abs=2)
    assert max(waited) < 0.005 or camera_rate > rate > 0
