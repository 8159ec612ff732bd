"""The worker of the localizer without DDS: which sound an image gets, and what time it has."""

from __future__ import annotations

import time
import types

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from localizer_with_loudness_model import LoudnessLocalizer
from ros_graph import jpeg_with_spot, wait_until
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from avssl_ros.audio_input import AudioBuffer
from avssl_ros.ros import answers
from avssl_ros.ros.converters import seconds_to_stamp
from avssl_ros.ros.health import Health

pytestmark = pytest.mark.ros

VALUES = {"sensor_timeout": 1.0, "rate": 0.0, "projection": "equirectangular", "audio_latency": 0.0, "frame_id": ""}


class StandInForNode:
    def get_clock(self):
        return types.SimpleNamespace(now=lambda: types.SimpleNamespace(nanoseconds=time.time_ns()))

    def get_logger(self):
        return types.SimpleNamespace(warning=lambda *_, **__: None, error=print)


@pytest.fixture
def worker():
    """Answers, and the scenes that they publish."""
    scenes, localizer = [], LoudnessLocalizer()
    outputs = types.SimpleNamespace(publish=lambda scene, header: scenes.append(scene))
    made = answers.Answers(StandInForNode(), localizer, localizer.stream(), outputs, Health())
    made.values = VALUES
    yield made, scenes
    made.stop()
    made.close()


def image(captured: float) -> CompressedImage:
    return CompressedImage(header=Header(stamp=seconds_to_stamp(captured)), data=jpeg_with_spot((256, 128), 0.0))


def test_an_image_without_a_stamp_has_the_time_at_which_it_arrived(worker):
    working, scenes = worker
    working.values = {**VALUES, "sensor_timeout": 60.0}  # a pause of the machine makes no image too late
    unstamped, before = image(0.0), time.time()
    working.put(unstamped)
    after = time.time()
    time.sleep(0.3)  # as behind a slow image
    working.start()
    wait_until(lambda: scenes, 5.0, "an answer")
    assert before - 0.1 < scenes[0].time < after + 0.1


def test_no_image_is_answered_from_before_the_end_of_its_sources(worker):
    """After a pause of the whole process the end was told first, and then an onset with an earlier time."""
    working, scenes = worker
    working.values = {**VALUES, "sensor_timeout": 2.0}
    working.start()
    working.put(image(time.time()))
    wait_until(lambda: len(scenes) == 2, 10.0, "an answer and the end of its sources")
    ended = scenes[1].time
    working.put(image(ended - 0.05))
    wait_until(lambda: working._health.late_images == 1, 5.0, "an image that is too late")
    for count, captured in ((3, ended + 0.05), (4, ended - 3600.0)):  # the next one; one of a clock that was set back
        working.put(image(captured))
        wait_until(lambda count=count: len(scenes) == count, 5.0, "an answer")
        assert scenes[-1].time == pytest.approx(captured, abs=1e-3)
    assert working._health.late_images == 1


@pytest.mark.parametrize("timeout, lag, is_told", [(10.0, 3.0, True), (10.0, 1.9, True), (1.0, 1.2, True),
                                                   (10.0, 1.5, False), (10.0, -9.0, True), (10.0, -3.0, False)]
)  # fmt: skip
def test_sound_that_lies_too_far_off_to_be_used_is_told_whatever_the_timeout(worker, timeout, lag, is_told):
    working, scenes = worker
    working.values = {**VALUES, "sensor_timeout": timeout}
    buffer = AudioBuffer(16000)
    working.sound = types.SimpleNamespace(buffer=buffer)
    working.start()
    until = time.monotonic() + (20.0 if is_told else 2.5)  # 1.75 s of images is what it takes at most to be told
    while time.monotonic() < until and working.sound_gap is None:
        now, answered = time.time(), len(scenes)
        buffer.write(np.full(8 * 16000, 0.5, np.float32), now - 8 - lag)
        working.put(image(now))
        next_image = time.monotonic() + 1.0
        while len(scenes) == answered and time.monotonic() < next_image:
            time.sleep(0.01)  # the sound of the next image must not be taken for this one's
        time.sleep(0.1)
    assert any(scene.sources for scene in scenes) != is_told
    assert working.sound_gap == (pytest.approx(abs(lag), abs=0.1) if is_told else None)
