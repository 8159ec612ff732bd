"""What looks after the active localizer: memory that is free does not stay with the process."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from memory import held

from avssl_ros.ros.watch import give_memory_back

pytestmark = pytest.mark.ros


def test_free_memory_between_what_is_held_goes_back():
    give_memory_back()
    before = held()
    blocks = [bytes(60_000) for _ in range(3000)]  # smaller than what the C library asks the system for by itself
    kept = blocks[::50]
    del blocks
    assert held() - before > 100e6, "the C library gives such memory back by itself"
    give_memory_back()
    assert held() - before < 30e6 and len(kept) == 60
