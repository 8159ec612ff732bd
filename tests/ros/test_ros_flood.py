"""A node that gets far more messages than it can use: memory stays, and it still answers."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import LOUDNESS_NODE, Feed, jpeg_with_spot, wait_until
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header

from avssl_ros.ros import converters

pytestmark = pytest.mark.ros

START_SECONDS = 30.0
FLOOD_SECONDS = 3.0
FLOOD = 1500  # messages at least, however long a busy machine takes for them


def memory_of(process) -> int:
    """Bytes that the process holds now."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1])


def test_a_flood_of_messages_fills_no_memory_and_the_node_answers_after_it(processes, peer):
    process = processes.start(LOUDNESS_NODE, audio_source="topic")
    sources = peer.collect(PointCloud2, "localizer/sources")

    def sounding() -> bool:
        return bool(sources) and sources[-1].width > 0

    with Feed(peer) as feed:
        wait_until(sounding, START_SECONDS, "a source")
        normal = memory_of(process)
        large, small = jpeg_with_spot((2048, 1024), 0.0), converters.sound_to_cloud(np.zeros(2), 16000, Header())
        sent = [0, 0]
        answers, begun = len(sources), time.monotonic()

        def is_flooded() -> bool:
            seconds = time.monotonic() - begun
            return seconds < FLOOD_SECONDS or (sum(sent) <= FLOOD and seconds < START_SECONDS)

        def flood(index: int, publish) -> None:
            while is_flooded():
                with contextlib.suppress(RuntimeError):  # DDS takes none while its locks are held for too long
                    publish()
                    sent[index] += 1

        threads = [
            threading.Thread(target=flood, args=(0, lambda: feed.sound.publish(small))),
            threading.Thread(target=flood, args=(1, lambda: feed.images.publish(
                CompressedImage(header=feed.header(), format="jpeg", data=large)))),
        ]  # fmt: skip
        feed.camera_on = feed.microphone_on = False  # their threads would not live on where DDS takes none
        for thread in threads:
            thread.start()
        most = 0
        while is_flooded():
            most = max(most, memory_of(process))
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        lasted, answered = time.monotonic() - begun, len(sources) - answers
        answers = len(sources)
        feed.camera_on = feed.microphone_on = True
        wait_until(lambda: len(sources) > answers + 5 and sounding(), START_SECONDS, "answers after the flood")
    print(f"{sum(sent) / lasted:.0f} messages a second; {normal >> 20} MB before, at most {most >> 20} MB")
    assert sum(sent) > FLOOD and sent[1] > 3 * answered, f"{sent} messages are no flood where {answered} are answered"
    assert most < 1.5 * normal
    assert process.poll() is None
