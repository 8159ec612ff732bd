"""`avssl check --topic` as a process beside a camera that publishes, and TF frames of sources.

tf2_msgs is not in the ROS wheels. Where it is absent, what is sent to `/tf` is looked at with a stand-in for the
message class and for the node: its form is tested, its way over DDS is not.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import LOUDNESS_NODE, Feed, log_of, wait_until
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from avssl_ros.geometry import direction_to_vector
from avssl_ros.ros import converters
from avssl_ros.ros.source_frames import SourceFrames
from avssl_ros.scene import Localization, Source

pytestmark = pytest.mark.ros

CHECK = [sys.executable, "-m", "avssl_ros.cli", "check"]


def scene(azimuth_deg: float, elevation_deg: float) -> Localization:
    source = Source(np.radians(azimuth_deg), np.radians(elevation_deg), 0.1, 0.9, "dog", 3, np.zeros(1),
                    np.zeros((1, 1)), 7, "active", 1.0)  # fmt: skip
    return Localization((source,), source.map, (), True, 1.0)


def test_check_draws_on_a_live_topic_and_names_its_frame(peer, tmp_path):
    picture = tmp_path / "live.png"
    with Feed(peer):
        command = [*CHECK, "--topic", "/image/compressed", "--output", str(picture)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "frame 'camera'" in run.stdout and "equirectangular" in run.stdout and "STAMP" not in run.stdout
    assert cv2.imread(str(picture)).shape == (256, 512, 3)


def test_check_says_why_no_image_comes(peer):
    peer.node.create_publisher(String, "chatter", 1)
    peer.node.create_publisher(Image, "camera/image", 1)
    wait_until(lambda: peer.node.count_publishers("chatter"), 10.0, "the publisher")
    checks = [
        subprocess.Popen([*CHECK, "--topic", topic], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for topic in ("/chatter", "/nothing")
    ]
    wrong, absent = (check.communicate(timeout=60)[1] for check in checks)
    assert [check.returncode for check in checks] == [2, 2]
    assert "std_msgs/msg/String" in wrong and "sensor_msgs/msg/Image" in wrong
    assert "nobody publishes /nothing" in absent and "/camera/image" in absent


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (90, 20), (-170, -30)])
def test_a_frame_stands_a_metre_towards_its_source_and_points_on(azimuth, elevation):
    header = Header(frame_id="head")
    (sent,) = converters.scene_to_transforms(scene(azimuth, elevation), header)
    place, q = sent.transform.translation, sent.transform.rotation
    towards = direction_to_vector(np.radians(azimuth), np.radians(elevation))
    np.testing.assert_allclose([place.x, place.y, place.z], towards, atol=1e-9)
    x_axis = [1 - 2 * (q.y**2 + q.z**2), 2 * (q.x * q.y + q.z * q.w), 2 * (q.x * q.z - q.y * q.w)]
    np.testing.assert_allclose(x_axis, towards, atol=1e-9)
    assert (sent.header.frame_id, sent.child_frame_id) == ("head", "source_7")


class StandInForTfMessage:
    def __init__(self, transforms):
        self.transforms = transforms


class StandInForNode:
    def __init__(self, namespace):
        self.sent, self.warnings = [], []
        self.get_namespace = lambda: namespace

    def create_publisher(self, message_type, topic, qos):
        assert (message_type, topic, qos.depth) == (StandInForTfMessage, "/tf", 100)
        return types.SimpleNamespace(publish=self.sent.append)

    def get_logger(self):
        return types.SimpleNamespace(warning=lambda text, **_: self.warnings.append(text))


@pytest.mark.parametrize("namespace, name", [("/", "source_7"), ("/robot/front", "robot/front/source_7")])
def test_frames_are_sent_for_every_source_while_it_sounds_with_a_stand_in_for_tf2_msgs(monkeypatch, namespace, name):
    module = types.ModuleType("tf2_msgs.msg")
    module.TFMessage = StandInForTfMessage
    monkeypatch.setitem(sys.modules, "tf2_msgs", types.ModuleType("tf2_msgs"))
    monkeypatch.setitem(sys.modules, "tf2_msgs.msg", module)
    node = StandInForNode(namespace)
    frames = SourceFrames(node)
    frames.publish(scene(10, 0), Header(frame_id="head"))
    frames.publish(Localization((), np.zeros((1, 1)), (), False, 2.0), Header(frame_id="head"))
    assert [[t.child_frame_id for t in message.transforms] for message in node.sent] == [[name]]
    frames.publish(scene(10, 0), Header())
    assert len(node.sent) == 1 and "frame_id" in node.warnings[0]


@pytest.mark.skipif(importlib.util.find_spec("tf2_msgs") is not None, reason="tf2_msgs is installed")
def test_without_tf2_msgs_a_node_asked_for_frames_says_what_to_install(processes):
    process = processes.start(LOUDNESS_NODE, audio_source="topic", broadcast_tf=True)
    assert process.wait(timeout=30.0) == 1
    last_line = log_of(process).strip().splitlines()[-1]
    assert last_line.startswith("cannot start:") and "tf2_msgs" in last_line and "broadcast_tf:=false" in last_line
