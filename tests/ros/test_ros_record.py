"""The node keeps what it sees and hears, where it is told to, and lives on where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import LOUDNESS_NODE, Feed, log_of, terminate, wait_until
from sensor_msgs.msg import PointCloud2

from avssl_ros.audio_input import read_audio
from avssl_ros.recorder import Recorder
from avssl_ros.ros import converters
from avssl_ros.video_input import VideoFile

pytestmark = pytest.mark.ros

START_SECONDS = 60.0
RATE = 4.0  # pictures per second that are kept, of the ten that come


def seconds(message) -> float:
    return converters.stamp_to_seconds(message.header.stamp)


def test_images_and_sound_are_kept_while_the_node_localizes(processes, peer, tmp_path):
    folder = tmp_path / "place"
    process = processes.start(LOUDNESS_NODE, audio_source="topic", record=str(folder), record_rate=RATE)
    answers = peer.collect(PointCloud2, "localizer/sources")
    with Feed(peer):
        wait_until(lambda: any(m.width for m in answers), START_SECONDS, "an answer, with sound")
        begun, sounding = seconds(answers[-1]), len(answers)
        wait_until(lambda: seconds(answers[-1]) - begun > 4.0 and len(answers) - sounding > 20, START_SECONDS,
                   "four seconds and twenty images more")  # fmt: skip
    assert terminate(process)[0] == 0
    segments = Recorder(folder).segments()
    assert 1 <= len(segments) <= 2, log_of(process)  # the first may have begun before the sound was there
    video = VideoFile(segments[-1])
    times = [moment for moment, _ in video]
    assert (video.width, video.height) == (512, 256) and len(times) >= 5
    assert len(times) <= 1.1 * RATE * (times[-1] - times[0]) + 2, "more pictures are kept than were wanted"
    assert np.median(np.diff(times)) == pytest.approx(1 / RATE, abs=0.1)
    samples, rate = read_audio(segments[-1])
    assert rate == 16000 and len(samples) / rate > 0.5 * times[-1] and np.abs(samples).max() > 0.1


def test_a_folder_that_cannot_be_made_is_said_at_the_start(processes, tmp_path):
    (tmp_path / "file").write_text("")
    process = processes.start(LOUDNESS_NODE, audio_source="topic", record=str(tmp_path / "file" / "place"))
    assert process.wait(timeout=START_SECONDS) == 1
    assert "cannot start" in log_of(process) and "place" in log_of(process)
