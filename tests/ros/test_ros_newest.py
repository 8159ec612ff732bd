"""The place between the callbacks and the worker: the newest item, once, never a queue."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from avssl_ros.ros.newest import Newest

pytestmark = pytest.mark.ros


def test_the_newest_item_is_taken_once_and_the_others_count_as_dropped():
    place = Newest()
    for item in "abc":
        place.put(item)
    assert place.take(0.1) == "c" and place.dropped == 2
    assert place.take(0.01) is None


def test_an_item_wakes_a_waiting_taker():
    place = Newest()
    threading.Timer(0.1, place.put, ["a"]).start()
    start = time.monotonic()
    assert place.take(5.0) == "a" and time.monotonic() - start < 2.0


def test_nothing_is_taken_before_its_time_and_then_it_is_the_newest():
    place = Newest()
    place.put("old")
    due = time.monotonic() + 0.2
    threading.Timer(0.1, place.put, ["new"]).start()
    assert place.take(0.05, not_before=due) is None
    assert place.take(5.0, not_before=due) == "new" and time.monotonic() >= due
