"""The node `overlay`: pictures only while someone looks, each with its own stamp."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import LOUDNESS_NODE, OVERLAY, Feed, log_of, stamp_of, terminate, wait_until
from sensor_msgs.msg import CompressedImage, PointCloud2

from avssl_ros.ros import converters, overlay_node

pytestmark = pytest.mark.ros

START_SECONDS = 30.0
INPUTS = ("localizer/map", "localizer/scene")


def is_drawn(message: CompressedImage) -> bool:
    """The feed is grey with a white spot: all colour comes from the drawing, and it is around the spot, on the left."""
    colour = np.ptp(converters.message_to_rgb(message).astype(int), axis=2).max(axis=0) > 60
    return bool(colour[64:256].any())


def test_the_overlay_works_only_while_someone_subscribes(processes, peer):
    processes.start(LOUDNESS_NODE, audio_source="topic")
    overlay = processes.start(OVERLAY)
    sources = peer.collect(PointCloud2, "localizer/sources")

    def idle() -> bool:
        return not any(peer.node.count_subscribers(topic) for topic in INPUTS)

    with Feed(peer) as feed:
        wait_until(lambda: any(m.width for m in sources), START_SECONDS, "a source")
        wait_until(lambda: peer.node.count_publishers("localizer/overlay/compressed"), START_SECONDS, "the overlay")
        assert idle(), "the overlay subscribes although nobody looks"

        pictures: list[CompressedImage] = []
        watcher = peer.node.create_subscription(CompressedImage, "localizer/overlay/compressed", pictures.append, 10)
        wait_until(lambda: len(pictures) >= 5 and any(is_drawn(picture) for picture in list(pictures)), START_SECONDS,
                   "pictures, one of them with a source")  # fmt: skip
        assert not idle()
        peer.node.destroy_subscription(watcher)
        wait_until(idle, 5.0, "the overlay to become idle again")

    assert {stamp_of(picture) for picture in pictures} <= set(feed.stamps)
    assert {converters.message_to_rgb(picture).shape for picture in pictures} == {(256, 512, 3)}
    assert "left out" not in log_of(overlay)
    assert terminate(overlay)[0] == 0


@pytest.mark.parametrize("rate, latency", [(30, 0.35), (60, 0.5), (10, 1.5)])
def test_pictures_wait_for_results_that_come_late(monkeypatch, rate, latency):
    now = [0.0]
    monkeypatch.setattr(overlay_node.time, "monotonic", lambda: now[0])
    partners, behind, complete = overlay_node.Partners(), round(latency * rate), 0
    for number in range(5 * rate):
        now[0] = number / rate
        partners.add((0, number), "image", CompressedImage())
        if number >= behind:
            drawn = [partners.add((0, number - behind), name, None) for name in overlay_node.PARTS]
            complete += drawn[-1] is not None
    assert complete == 5 * rate - behind
    assert len(partners._waiting) == behind


def test_pictures_without_results_fill_no_memory(monkeypatch):
    monkeypatch.setattr(overlay_node, "KEPT_BYTES", 1000)
    partners = overlay_node.Partners()
    for number in range(50):
        partners.add((0, number), "image", CompressedImage(data=bytes(300)))
        partners.add((1, number), "scene", None)
    assert sum(map(overlay_node._size, partners._waiting.values())) <= 1000
