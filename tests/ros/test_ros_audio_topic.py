"""Sound from a topic: what is let go is gone at once."""

from __future__ import annotations

import gc
import weakref

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import wait_until
from sensor_msgs.msg import PointCloud2

from avssl_ros.ros.audio_topic import AudioTopic

pytestmark = pytest.mark.ros


def started_and_stopped(peer) -> weakref.ref:
    topic = AudioTopic(peer.node, lambda: None)
    topic.start()
    wait_until(lambda: topic.status().state == "stale", 10.0, "the subscription")
    topic.stop()
    return weakref.ref(topic)


def test_a_stopped_source_is_freed_without_the_garbage_collector(peer):
    peer.node.create_publisher(PointCloud2, "audio", 10)
    gc.disable()  # it comes too seldom for the seconds of sound that each source holds
    try:
        stopped = started_and_stopped(peer)
        wait_until(lambda: stopped() is None, 5.0, "the source to be freed")
    finally:
        gc.enable()
