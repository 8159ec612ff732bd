"""Node `scene_player`: plays a video file as a camera and a microphone would deliver it.

    scene_player --ros-args -p file:=walk.mp4 -p loop:=true

Publishes `image/compressed` (sensor_msgs/CompressedImage, JPEG) at the file's rate and, where the file has sound,
`audio` (sensor_msgs/PointCloud2, the form avssl_ros.ros.converters describes) in blocks of 50 ms. Stamps are of one
capture clock, the node's, on which picture and sound stay together over any number of loops. A block of sound is
published when its last sample is due, as by a microphone. A computer that is too slow drops pictures, never sound.

Without `loop` the node ends with status 0 after the last picture. Parameters: parameters.py.
"""

from __future__ import annotations

if __name__ == "__main__":
    from avssl_ros.ros import stopping

    stopping.listen()  # here, because what is imported below takes seconds

import heapq
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from os.path import expanduser

import cv2
import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header

from avssl_ros.audio_input import read_audio
from avssl_ros.paths import demo_scene
from avssl_ros.ros import converters, parameters
from avssl_ros.ros.runtime import Process, run
from avssl_ros.video_input import VideoFile

BLOCK_SECONDS = 0.05
AUDIO_WAIT_SECONDS = 2.0  # the localizer finds the sound's type in the graph, a moment after it subscribed to images
LINGER_SECONDS = 0.5  # for the last messages to leave


class ScenePlayer(Process):
    """See the top of this file."""

    def __init__(self):
        super().__init__("scene_player")
        parameters.declare(self, parameters.SCENE_PLAYER)
        self._values = parameters.values(self, parameters.SCENE_PLAYER)
        path = expanduser(self._values["file"]) or demo_scene() / "scene.mp4"
        self._video = VideoFile(path)
        self._samples, self._sample_rate = read_audio(path) if self._video.has_audio else (np.zeros(0, np.float32), 1)
        self._length = self._video.duration or len(self._samples) / self._sample_rate
        # Reliable, which satisfies subscribers of either kind.
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        self._images = self.create_publisher(CompressedImage, "image/compressed", qos)
        qos = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._sound = self.create_publisher(PointCloud2, "audio", qos) if self._video.has_audio else None
        self._start = 0.0  # monotonic time of the file's first moment
        self._clock_offset = 0.0  # from the monotonic clock to the node's
        self._stopping = threading.Event()
        self._player = threading.Thread(target=self._play, name="player", daemon=True)
        self._player.start()
        sound = f"sound at {self._sample_rate} Hz" if self._video.has_audio else "without sound"
        self.get_logger().info(f"{path}: {self._video.fps:g} images per second, {self._length:.1f} s, {sound}")

    def close(self) -> None:
        self._stopping.set()
        self._player.join()

    def _play(self) -> None:
        if wanted := self._values["subscribers"]:
            self._wait_for_subscribers(self._images, wanted, float("inf"))
            if self._sound is not None:
                self._wait_for_subscribers(self._sound, 1, AUDIO_WAIT_SECONDS)
        self._stopping.wait(self._values["start_delay"])
        now = time.monotonic()
        self._clock_offset = self.get_clock().now().nanoseconds * 1e-9 - now
        for loop in count():
            if self._stopping.is_set() or (loop and not self._values["loop"]):
                break
            self._start = now + loop * self._length
            self._play_once()
        if self._video.error:
            self.get_logger().warning(self._video.error)
        self._stopping.wait(LINGER_SECONDS)
        self.finished = True

    def _wait_for_subscribers(self, publisher, wanted: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        while publisher.get_subscription_count() < wanted and time.monotonic() < until:
            if self._stopping.wait(0.05):
                return

    def _play_once(self) -> None:
        """Publish every message of the file at its time. They are made one ahead, so that encoding does not delay."""
        for due, publisher, message in heapq.merge(self._make_images(), self._make_sound(), key=lambda item: item[0]):
            if self._stopping.wait(max(0.0, self._start + due - time.monotonic())):
                return
            publisher.publish(message)

    def _make_images(self) -> Iterator[tuple[float, object, CompressedImage]]:
        next_due, period = 0.0, 1 / self._values["rate"] if self._values["rate"] else 0.0
        for captured, image in self._video:
            if captured < next_due - 0.5 / self._video.fps:
                continue
            next_due += period
            if time.monotonic() > self._start + captured + 1 / self._video.fps:
                continue  # late by more than a picture: drop it, as a camera would
            if width := self._values["width"]:
                height = round(image.shape[0] * width / image.shape[1])
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            message = converters.rgb_to_compressed(image, self._header(captured), self._values["jpeg_quality"])
            yield captured, self._images, message

    def _make_sound(self) -> Iterator[tuple[float, object, PointCloud2]]:
        if self._sound is None:
            return
        rate, block = self._sample_rate, round(BLOCK_SECONDS * self._sample_rate)
        total = round(self._length * rate)  # as long as the video, so that the next loop follows on
        samples = np.pad(self._samples[:total], (0, max(0, total - len(self._samples))))
        for first in range(0, total, block):
            # A block needs two samples to carry its rate: a last single one is given to the block before it.
            last = total if total - first - block < 2 else first + block
            message = converters.sound_to_cloud(samples[first:last], rate, self._header(first / rate))
            yield last / rate, self._sound, message
            if last == total:
                return

    def _header(self, captured: float) -> Header:
        stamp = converters.seconds_to_stamp(self._clock_offset + self._start + captured)
        return Header(stamp=stamp, frame_id=self._values["frame_id"])


def main(args: list[str] | None = None) -> int:
    return run(ScenePlayer, args)


if __name__ == "__main__":
    sys.exit(main())
