"""Sound from the topic `audio`, as one more source beside the microphone and the file.

The message type is that of whoever publishes, found in the ROS graph, so nothing has to be configured:

- sensor_msgs/PointCloud2: `scene_player`, or anything else; the form is described in `avssl_ros.ros.converters`;
- audio_common_msgs/AudioStamped: mgonzs13/audio_common;
- audio_common_msgs/AudioDataStamped and AudioData: ros-drivers/audio_common, format "wave", told by `audio_info`.

Stamps are the capture time of the first sample. AudioData has none: its arrival is taken as the time of its last one.
Both audio_common_msgs packages have the same name and exclude each other, so their types are imported only once a
publisher of that type is seen.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from avssl_ros.audio_input import AudioBuffer, AudioSource, AudioStatus
from avssl_ros.ros import converters

SEARCH_SECONDS = 0.5
STALE_SECONDS = 1.0
WARN_SECONDS = 10.0
QUEUE = 100  # sound messages are small, and a lost one tears a hole
READERS = {  # methods of AudioTopic by name: kept in the object itself they would be a cycle, and hold its sound
    "sensor_msgs/msg/PointCloud2": "_read_cloud",
    "audio_common_msgs/msg/AudioStamped": "_read_stamped",
    "audio_common_msgs/msg/AudioDataStamped": "_read_data_stamped",
    "audio_common_msgs/msg/AudioData": "_read_data",
}


class AudioTopic(AudioSource):
    """Subscribes to `audio` as soon as someone publishes it. Bad messages are left out; `on_bad` is told of each."""

    def __init__(self, node: Node, on_bad: Callable[[], None]):
        self.buffer = AudioBuffer(48000)
        self._on_bad = on_bad
        self._node = node
        self._topic = node.resolve_topic_name("audio")
        self._type: str | None = None
        self._reliability: ReliabilityPolicy | None = None
        self._publishers = 0
        self._detail = "not started"
        self._last_arrival: float | None = None
        self._info = None
        self._subscriptions: list = []
        self._search = None

    def start(self) -> None:
        self._detail = f"nobody publishes {self._topic}"
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a recording that stands still must not stop the search
        self._search = self._node.create_timer(SEARCH_SECONDS, self._look_for_publisher, clock=steady)
        self._look_for_publisher()

    def stop(self) -> None:
        if self._search is not None:
            self._node.destroy_timer(self._search)
            self._search = None
        self._unsubscribe()
        self._detail = "not started"

    def status(self) -> AudioStatus:
        if self._type is None:
            state, detail = "absent", self._detail
        elif self._last_arrival is None:
            state, detail = "stale", f"{self._detail}: no sound has arrived yet"
        elif (age := time.monotonic() - self._last_arrival) > STALE_SECONDS:
            is_gone = not self._publishers
            state = "absent" if is_gone else "stale"
            detail = f"{self._detail}: {'its publisher is gone' if is_gone else f'no sound for {age:.1f} s'}"
        else:
            state, detail = "ok", f"{self._detail} at {self.sample_rate} Hz"
        return AudioStatus(state, detail, 0, self.buffer.latest)

    def _look_for_publisher(self) -> None:
        """Subscribe to the first type that can be read; anew where its publishers have gone or offer another QoS."""
        publishers = self._node.get_publishers_info_by_topic(self._topic)
        self._publishers = len(publishers)
        if not publishers:
            return
        readable = [publisher for publisher in publishers if publisher.topic_type in READERS]
        if not readable:
            self._unsubscribe()
            self._refuse(f"{self._topic} has type {publishers[0].topic_type}, wanted one of {', '.join(READERS)}")
            return
        types = [publisher.topic_type for publisher in readable]
        kind = self._type if self._type in types else types[0]
        reliability = _common_reliability([publisher for publisher in readable if publisher.topic_type == kind])
        if (kind, reliability) == (self._type, self._reliability):
            return
        self._unsubscribe()
        try:
            self._subscribe(kind, reliability)
        except (ImportError, AttributeError) as error:
            self._refuse(f"{self._topic} has type {kind}, whose package is not installed here ({error})")

    def _refuse(self, detail: str) -> None:
        self._detail = detail
        self._node.get_logger().error(detail, throttle_duration_sec=WARN_SECONDS)

    def _subscribe(self, kind: str, reliability: ReliabilityPolicy) -> None:
        qos = QoSProfile(depth=QUEUE, reliability=reliability)
        message_type = _message_type(kind)
        if kind in ("audio_common_msgs/msg/AudioData", "audio_common_msgs/msg/AudioDataStamped"):
            info_qos = QoSProfile(depth=1, durability=DurabilityPolicy.VOLATILE)
            info_type = _message_type("audio_common_msgs/msg/AudioInfo")
            self._subscriptions.append(self._node.create_subscription(info_type, "audio_info", self._on_info, info_qos))
        callback = self._safely(getattr(self, READERS[kind]))
        self._subscriptions.append(self._node.create_subscription(message_type, "audio", callback, qos))
        self._type, self._reliability = kind, reliability
        self._detail = f"{self._topic} ({kind})"

    def _unsubscribe(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._type = self._reliability = None

    def _safely(self, read):
        """The reader as a callback that survives bad messages."""

        def callback(message) -> None:
            try:
                read(message)
            except ValueError as error:
                self._on_bad()
                self._node.get_logger().warning(
                    f"sound on {self._topic} left out: {error}", throttle_duration_sec=WARN_SECONDS
                )

        return callback

    def _on_info(self, message) -> None:
        self._info = message

    def _read_cloud(self, message) -> None:
        self._write(*converters.cloud_to_sound(message), converters.stamp_to_seconds(message.header.stamp))

    def _read_stamped(self, message) -> None:
        self._write(*converters.audio_stamped_to_sound(message), converters.stamp_to_seconds(message.header.stamp))

    def _read_data_stamped(self, message) -> None:
        samples, rate = self._from_bytes(message.audio.data)
        self._write(samples, rate, converters.stamp_to_seconds(message.header.stamp))

    def _read_data(self, message) -> None:
        samples, rate = self._from_bytes(message.data)
        now = self._node.get_clock().now().nanoseconds * 1e-9
        self._write(samples, rate, now - len(samples) / rate)

    def _from_bytes(self, data) -> tuple[np.ndarray, int]:
        if self._info is None:
            raise ValueError(f"nothing arrived on {self._node.resolve_topic_name('audio_info')} to say how it is coded")
        return converters.audio_data_to_sound(data, self._info)

    def _write(self, samples: np.ndarray, rate: int, capture_time: float) -> None:
        if rate != self.buffer.sample_rate:
            self.buffer = AudioBuffer(rate)
        self.buffer.write(samples, capture_time)
        self._last_arrival = time.monotonic()


def _common_reliability(publishers: list) -> ReliabilityPolicy:
    """Reliable only where every publisher is: a reliable subscription gets nothing from a best effort one."""
    reliable = all(publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE for publisher in publishers)
    return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT


def _message_type(name: str):
    """The Python class of a message type name such as `std_msgs/msg/String`."""
    package, _, message = name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), message)
