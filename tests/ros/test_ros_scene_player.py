"""The node `scene_player`: picture and sound of a file as sensors deliver them, together on one clock."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import LOUDNESS_NODE, PLAYER, log_of, terminate, wait_until
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import String

from avssl_ros.ros import converters

pytestmark = pytest.mark.ros

FPS, RATE, SECONDS = 10, 16000, 3
LOUD_FROM, LOUD_TO = 1.0, 2.0  # the picture is bright and the sound loud in between
START_SECONDS = 60.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video whose light and sound go on and off together. Uncompressed sound, so that its start is exact."""
    path = tmp_path_factory.mktemp("clip") / "clip.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FPS, width=256, height=128, pix_fmt="yuv420p")
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for index in range(FPS * SECONDS):
            is_on = LOUD_FROM <= index / FPS < LOUD_TO
            picture = np.full((128, 256, 3), 200 if is_on else 20, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            samples = np.sin(np.arange(RATE // FPS) * 0.3) * (16000 if is_on else 0)
            frame = av.AudioFrame.from_ndarray(samples.astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, index * RATE // FPS
            container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path


def seconds(message) -> float:
    return converters.stamp_to_seconds(message.header.stamp)


def loud_from_to(sounds: list) -> tuple[float, float]:
    """When the sound begins to be loud, and when it is for the last time."""
    blocks = [(seconds(message), np.abs(converters.cloud_to_sound(message)[0]) > 0.1) for message in sounds]
    loud = [start + np.flatnonzero(block)[[0, -1]] / RATE for start, block in blocks if block.any()]
    return float(loud[0][0]), float(loud[-1][1])


def wait_for_all(sounds: list) -> list:
    """The blocks of sound, once that which ends with the file has come: a moment after its player has ended."""

    def has_come() -> bool:
        heard = list(sounds)
        if not any((np.abs(converters.cloud_to_sound(message)[0]) > 0.1).any() for message in heard):
            return False
        end = seconds(heard[-1]) + heard[-1].width / RATE
        return end > loud_from_to(heard)[0] + SECONDS - LOUD_FROM - 0.005

    wait_until(has_come, 10.0, "the end of the sound")
    return list(sounds)


def in_a_row(numbers: list[int]) -> int:
    """The most numbers that follow on each other."""
    gaps = np.flatnonzero(np.diff(numbers) != 1)
    return int(np.diff([-1, *gaps, len(numbers) - 1]).max())


def kinds(events: list) -> list[str]:
    return [json.loads(message.data)["event"] for message in list(events)]


def assert_on_grid(images: list, period: float) -> None:
    """Stamps one period apart, or several where pictures in between were dropped; never in between."""
    periods = np.diff([seconds(message) for message in images]) / period
    np.testing.assert_allclose(periods, np.round(periods), atol=0.02)
    assert (np.round(periods) >= 1).all()


def test_pictures_and_sound_keep_the_files_own_time(processes, peer, clip):
    images, sounds = peer.collect(CompressedImage, "image/compressed"), peer.collect(PointCloud2, "audio")
    player = processes.start(PLAYER, file=str(clip), width=128)
    assert player.wait(timeout=START_SECONDS) == 0, log_of(player)
    sounds, images = wait_for_all(sounds), list(images)  # no more is added to these

    assert 0.7 * FPS * SECONDS <= len(images) <= FPS * SECONDS  # a machine that is too busy may drop some
    assert_on_grid(images, 1 / FPS)
    blocks = [converters.cloud_to_sound(m) for m in sounds]
    assert {rate for _, rate in blocks} == {RATE}
    ends = [seconds(m) + len(block) / RATE for m, (block, _) in zip(sounds, blocks, strict=True)]
    np.testing.assert_allclose([seconds(m) for m in sounds[1:]], ends[:-1], atol=1e-6)

    pictures = [converters.message_to_rgb(m) for m in images]
    assert pictures[0].shape == (64, 128, 3)
    onset, offset = loud_from_to(sounds)
    assert abs(offset - onset - (LOUD_TO - LOUD_FROM)) < 0.005
    # Whichever pictures were dropped: the others begin with the sound that belongs to them, or whole pictures apart.
    after = (np.array([seconds(m) for m in images]) - onset) * FPS
    np.testing.assert_allclose(after, np.round(after), atol=0.005 * FPS)
    assert in_a_row(np.round(after)) >= 5  # dropped are those of a pause, not one here and one there
    assert -LOUD_FROM * FPS <= round(after[0]) and round(after[-1]) < (SECONDS - LOUD_FROM) * FPS
    assert seconds(sounds[0]) > onset - LOUD_FROM - 0.005 and ends[-1] < onset + SECONDS - LOUD_FROM + 0.005
    lit = [picture.mean() > 100 for picture in pictures]
    assert lit == [0 <= round(number) < (LOUD_TO - LOUD_FROM) * FPS for number in after] and 0 < sum(lit) < len(lit)


def test_a_loop_goes_on_without_a_gap_until_a_signal(processes, peer, clip):
    images, sounds = peer.collect(CompressedImage, "image/compressed"), peer.collect(PointCloud2, "audio")
    player = processes.start(PLAYER, file=str(clip), loop=True, rate=5.0)
    wait_until(lambda: len(images) >= 5 * SECONDS + 3, START_SECONDS, "the second loop")
    assert terminate(player)[0] == 0, log_of(player)
    images, sounds = list(images), list(sounds)  # what still comes is not looked at
    assert_on_grid(images, 1 / 5)
    lengths = [m.width / RATE for m in sounds[:-1]]
    np.testing.assert_allclose(np.diff([seconds(m) for m in sounds]), lengths, atol=1e-6)


def test_the_localizer_hears_the_player_in_step_with_its_pictures(processes, peer, clip):
    sounds = peer.collect(PointCloud2, "audio")
    events, scenes = (peer.collect(String, f"localizer/{name}") for name in ("events", "scene"))
    processes.start(LOUDNESS_NODE, audio_source="topic")
    wait_until(lambda: peer.node.count_publishers("localizer/events"), START_SECONDS, "the localizer")
    processes.start(PLAYER, file=str(clip), subscribers=1, loop=True)
    # Two loops: in the first, the player may begin before both the localizer and this peer subscribe to its sound.
    wait_until(lambda: kinds(events).count("offset") >= 2, START_SECONDS, "two offsets")
    last = [number for number, kind in enumerate(kinds(events)) if kind == "offset"][1]
    assert kinds(events)[last - 1] == "onset"
    onset, offset = (json.loads(message.data)["time"] for message in events[last - 1 : last + 1])
    wait_until(lambda: seconds(sounds[-1]) > offset and json.loads(scenes[-1].data)["time"] >= offset, 10.0,
               "the sound around them, and the last scene of it")  # fmt: skip
    answered = np.array([json.loads(message.data)["time"] for message in list(scenes)])
    loud = loud_from_to([message for message in list(sounds) if abs(seconds(message) - onset) < SECONDS / 2])
    for told, heard, within in ((onset, loud[0], 4), (offset, loud[1], 5)):
        # The loudness model judges the last 0.2 s, and pictures come every 0.1 s, but for those that were dropped.
        assert 1 <= ((answered > heard - 0.001) & (answered <= told)).sum() <= within, (told - heard, answered - heard)


def test_a_file_that_cannot_be_played_is_named(processes):
    player = processes.start(PLAYER, file="~/no/such.mp4")
    assert player.wait(timeout=START_SECONDS) == 1
    assert f"{Path.home()}/no/such.mp4 does not exist" in log_of(player)
