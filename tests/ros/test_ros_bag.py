"""Bags of images and sound become the segments that a recording of the same would be."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")
pytest.importorskip("rosbags", reason="rosbags is absent: pip install -e '.[bags]'")

from rclpy.serialization import serialize_message
from rosbags import rosbag2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from avssl_ros.audio_input import read_audio
from avssl_ros.cli import main
from avssl_ros.recorder import Recorder
from avssl_ros.ros import converters
from avssl_ros.video_input import VideoFile

pytestmark = pytest.mark.ros

START, RATE = 1_795_000_000.0, 16000
SOUND = "audio_common_msgs/msg/AudioStamped"
IMAGE, CLOUD = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/PointCloud2"


def write_bag(path, plugin, cameras=("/camera/image/compressed",), seconds=3.0, stamped=True):
    """Ten images and ten blocks of a tone a second, and an image that is none; without stamps these are 0."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)
    with rosbag2.Writer(path, version=9, storage_plugin=plugin) as writer:
        images = [writer.add_connection(name, IMAGE, typestore=store) for name in cameras]
        sound = writer.add_connection("/audio", CLOUD, typestore=store)
        for number in range(round(10 * seconds)):
            time = START + number / 10
            header = Header(stamp=converters.seconds_to_stamp(time * stamped), frame_id="camera")
            picture = converters.rgb_to_compressed(np.full((64, 128, 3), 5 * number % 256, np.uint8), header, 90)
            first = number * RATE // 10
            block = converters.sound_to_cloud(tone[first : first + RATE // 10], RATE, header)
            for connection in images:
                writer.write(connection, round(time * 1e9), bytes(serialize_message(picture)))
            writer.write(sound, round(time * 1e9), bytes(serialize_message(block)))
        broken = CompressedImage(header=header, format="jpeg", data=b"no picture")
        writer.write(images[0], round(time * 1e9) + 1, bytes(serialize_message(broken)))
    return path


@pytest.mark.parametrize("plugin", ["SQLITE3", "MCAP"])
def test_a_bag_becomes_segments_with_the_times_of_its_headers(tmp_path, capsys, plugin):
    bag = write_bag(tmp_path / "bag", rosbag2.StoragePlugin[plugin])
    assert main(["record", str(tmp_path / "place"), "--bag", str(bag), "--segment", "2"]) == 0
    said = capsys.readouterr()
    assert "2 segments written" in said.out and "1 messages could not be read" in said.err
    first, second = Recorder(tmp_path / "place").segments()
    assert first.name == "20261118T110640.000Z.mp4" and second.name == "20261118T110642.000Z.mp4"
    shown = list(VideoFile(first))
    assert len(shown) == 20 and [round(moment, 2) for moment, _ in shown[:3]] == [0.0, 0.1, 0.2]
    assert shown[10][1].mean() == pytest.approx(50, abs=4)
    samples, rate = read_audio(first)
    assert rate == RATE and len(samples) == pytest.approx(2 * RATE, rel=0.05) and np.abs(samples).max() > 0.3


def test_what_is_not_in_the_bag_or_not_alone_in_it_is_named(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", rosbag2.StoragePlugin.MCAP, ("/left/compressed", "/right/compressed"), 0.5)
    place = ["record", str(tmp_path / "place"), "--bag"]
    assert main([*place, str(bag)]) == 2
    assert "2 topics with images" in (said := capsys.readouterr().err) and "/right/compressed" in said
    assert main([*place, str(bag), "--image-topic", "/middle"]) == 2
    assert "no topic /middle" in capsys.readouterr().err
    assert main([*place, str(bag), "--image-topic", "/right/compressed"]) == 0
    (tmp_path / "none").mkdir()
    assert main([*place, str(tmp_path / "none")]) == 2
    assert "no ROS 2 bag" in capsys.readouterr().err


@pytest.mark.parametrize("rate, count", [("5", 8), ("4", 7), ("30", 16)])
def test_rate_and_seconds_hold_for_a_bag_as_for_a_camera(tmp_path, rate, count):
    bag = write_bag(tmp_path / "bag", rosbag2.StoragePlugin.MCAP)
    assert main(["record", str(tmp_path / "place"), "--bag", str(bag), "--rate", rate, "--seconds", "1.55"]) == 0
    (segment,) = Recorder(tmp_path / "place").segments()
    assert len(list(VideoFile(segment))) == count


def test_without_stamps_the_times_of_recording_are_taken(tmp_path):
    bag = write_bag(tmp_path / "bag", rosbag2.StoragePlugin.MCAP, stamped=False)
    assert main(["record", str(tmp_path / "place"), "--bag", str(bag)]) == 0
    (segment,) = Recorder(tmp_path / "place").segments()
    assert segment.name == "20261118T110640.000Z.mp4" and len(list(VideoFile(segment))) == 30
    samples, rate = read_audio(segment)
    assert len(samples) / rate == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("package", [None, types.ModuleType("audio_common_msgs.msg")], ids=["absent", "another"])
def test_a_bag_of_messages_that_are_not_here_names_their_package(tmp_path, capsys, monkeypatch, package):
    for name in ("audio_common_msgs", "audio_common_msgs.msg"):
        monkeypatch.setitem(sys.modules, name, package)
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("std_msgs/Header header", SOUND))
    with rosbag2.Writer(tmp_path / "bag", version=9) as writer:
        writer.add_connection("/camera", IMAGE, typestore=store)
        writer.add_connection("/audio", SOUND, typestore=store)
    assert main(["record", str(tmp_path / "place"), "--bag", str(tmp_path / "bag")]) == 2
    said = capsys.readouterr().err
    assert "package audio_common_msgs is not here or is another" in said and "source its setup.bash" in said


def test_training_reads_a_bag_as_it_reads_its_segments(tmp_path):
    pytest.importorskip("torch", reason="torch is absent: pip install -e '.[train]'")
    from training.recordings import read_recording

    bag = write_bag(tmp_path / "bag", rosbag2.StoragePlugin.MCAP, seconds=6.0)
    assert main(["record", str(tmp_path / "place"), "--bag", str(bag)]) == 0
    of_bag, of_segments = read_recording(bag), read_recording(tmp_path / "place")
    assert len(of_bag.moments) >= 3 and len(of_bag) == len(of_segments) > 10
    for one, other in zip(of_bag.moments, of_segments.moments, strict=True):
        assert one.time == other.time and one.picture == other.picture
        assert np.array_equal(one.sound, other.sound)
    assert np.array_equal(of_bag.picture(7), of_segments.picture(7))
