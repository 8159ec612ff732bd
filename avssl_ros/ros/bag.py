"""A ROS 2 bag (sqlite3, MCAP) of camera and sound as the mp4 segments of recorder.py, so that a bag is a training set.

    avssl record place --bag rosbag2_2026_11_26

No ROS installation is needed: the package rosbags (extra `bags`) reads the file, rclpy's wheel (extra `ros`) its
messages. Pictures and sound are those that the localizer itself would take: their times are the capture times in the
headers, or, where these are 0, those at which they were recorded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rclpy.serialization import deserialize_message

from avssl_ros.interrupt import Interrupt
from avssl_ros.recorder import Recorder
from avssl_ros.rhythm import Rhythm
from avssl_ros.ros import converters

IMAGES = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"
SOUND: dict[str, Callable] = {
    "sensor_msgs/msg/PointCloud2": converters.cloud_to_sound,
    "audio_common_msgs/msg/AudioStamped": converters.audio_stamped_to_sound,
}


class Bag:
    """One bag and the two topics of it that are wanted.

    Args:
        path: the bag's folder, or its .mcap file.
        image_topic, sound_topic: None takes the only one of a fitting type.

    Raises:
        ValueError: it is no bag, or what is wanted is not in it or not the only one, or of a type that is not here;
            the text names what there is.
    """

    def __init__(self, path: str | Path, image_topic: str | None = None, sound_topic: str | None = None):
        self.path, self.unreadable = Path(path), 0
        self._reader = _open(self.path)
        types = {connection.topic: connection.msgtype for connection in self._reader.connections}
        self.image_topic = _choose(types, image_topic, IMAGES, "images", "--image-topic")
        self.sound_topic = _choose(types, sound_topic, tuple(SOUND), "sound", "--sound-topic")
        self._types = {types[topic]: _type(types[topic]) for topic in (self.image_topic, self.sound_topic)}

    @property
    def sample_rate(self) -> int:
        """Hz of the first sound that can be read. Raises ValueError where there is none."""
        for topic, _, message, kind in self.messages():
            if topic == self.sound_topic:
                try:
                    return SOUND[kind](message)[1]
                except ValueError:
                    continue
        raise ValueError(f"no message on {self.sound_topic} holds sound that can be read")

    def messages(self) -> Iterator[tuple[str, float, object, str]]:
        """Topic, time of recording in seconds, message and its type, in the order in which they were recorded."""
        wanted = [c for c in self._reader.connections if c.topic in (self.image_topic, self.sound_topic)]
        for connection, nanoseconds, raw in self._reader.messages(wanted):
            kind = connection.msgtype
            yield connection.topic, nanoseconds * 1e-9, deserialize_message(bytes(raw), self._types[kind]), kind

    def convert(self, recorder: Recorder, rate: float = np.inf, seconds: float = np.inf,
                interrupt: Interrupt | None = None) -> None:
        """Into segments; messages that cannot be read are left out and counted in `unreadable`.

        Args:
            rate: pictures of a second that are kept at most. seconds: of the bag that are read, from its beginning.
            interrupt: what may end it early, between two messages.
        """
        begun, rhythm = None, Rhythm(rate)
        messages = self.messages() if interrupt is None else interrupt.between(self.messages())
        for topic, recorded, message, kind in messages:
            begun = recorded if begun is None else begun
            if recorded - begun > seconds:
                return
            captured = converters.stamp_to_seconds(message.header.stamp) or recorded
            try:
                if topic == self.image_topic:
                    image = converters.message_to_rgb(message)
                    if rhythm.is_due(captured):
                        recorder.add_frame(image, captured)
                else:
                    recorder.add_sound(*SOUND[kind](message), captured)
            except ValueError:
                self.unreadable += 1

    def close(self) -> None:
        self._reader.close()


def _type(name: str):
    package, _, message = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), message)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the bag holds {name}, but the package {package} is not here or is another one of that name "
                         f"({error}): build the one that the bag was recorded with in a ROS 2 workspace and source its "
                         "setup.bash first") from error


def _open(path: Path):
    try:
        from rosbags.rosbag2 import Reader, ReaderError
    except ImportError as error:
        raise ValueError(f"reading a bag needs rosbags, which is not here ({error}): pip install 'avssl_ros[bags]'"
                         ) from error
    try:
        reader = Reader(path)
        reader.open()
    except (ReaderError, OSError) as error:
        raise ValueError(f"{path} is no ROS 2 bag that can be read: {error}") from error
    return reader


def _choose(types: dict[str, str], wanted: str | None, fitting: tuple[str, ...], what: str, option: str) -> str:
    there = sorted(topic for topic, kind in types.items() if kind in fitting)
    listed = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(types.items())) or "nothing"
    if wanted is not None:
        if wanted not in there:
            raise ValueError(f"no topic {wanted} with {what} ({' or '.join(fitting)}) in the bag; it holds {listed}")
        return wanted
    if len(there) != 1:
        raise ValueError(f"{len(there)} topics with {what} in the bag: name one with {option}; it holds {listed}")
    return there[0]
