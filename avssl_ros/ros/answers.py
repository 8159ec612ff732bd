"""The worker thread of the localizer: the newest image and the sound that belongs to it in, what is published out.

It never works on an image that is older than it must be. When images or sound stop, all sources end: their offsets are
published and one last empty `~/sources`, stamped with the time at which that was noticed. While there is sound but no
image, `~/scene` says twice a second what is heard.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Header

from avssl_ros.audio_input import AudioSource
from avssl_ros.localizer import Hearing, Localizer, LocalizerStream, check_image
from avssl_ros.ros import converters, stopping
from avssl_ros.ros.camera import optical_frame
from avssl_ros.ros.health import Health
from avssl_ros.ros.keeping import Keeping
from avssl_ros.ros.newest import Newest, next_start
from avssl_ros.ros.outputs import Outputs
from avssl_ros.scene import Localization

WAIT_SECONDS = 0.1  # how often the worker looks whether it should end
MIN_SOUND_SECONDS = 0.25  # less than this says nothing: right after the start, or after a gap
LISTEN_SECONDS = 0.5  # between two scenes of sound alone
JOIN_SECONDS = 0.8  # of the 2 s in which the process is to end
WARN_SECONDS = 5.0  # rclpy holds warnings of one line of code apart: each kind has a line of its own
STAMP_WARN_SECONDS = FRAME_WARN_SECONDS = 50.0


class Answers:
    """Answers images between `start` and `stop`.

    Attributes:
        values: the node's parameters by name; replaced as a whole.
        sound: where sound comes from, None where there is none; replaced as a whole.
        keeping: what records all images, None where that is not wanted.
        sound_gap: seconds between the newest sound and the newest image, where they have been too far apart to belong
            together for a while (sensor_timeout, or what the window of sound allows where that is less); else None.
    """

    def __init__(self, node: Node, localizer: Localizer, stream: LocalizerStream, outputs: Outputs, health: Health):
        self.values: dict = {}
        self.sound: AudioSource | None = None
        self.keeping: Keeping | None = None
        self.sound_gap: float | None = None
        self._apart_since: float | None = None  # monotonic
        self._node, self._outputs, self._health = node, outputs, health
        self._localizer, self._stream = localizer, stream
        self._frames: Newest = Newest()  # (monotonic time of arrival, message)
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._last_header: Header | None = None  # of the last answer while it stands, None once sources have ended
        self._camera_frame = ""  # frame id of the last image
        self._last_captured = 0.0  # capture time of the last answer
        self._ended = -np.inf  # capture time at which all sources were last ended because nothing came
        self._last_answer = self._next_start = self._next_listening = 0.0  # monotonic
        self._map = np.zeros((1, 1), np.float32)  # the last one, for its size
        # One thread for all activations: glibc gives each new one a heap of its own, 9 MB of which it keeps.
        self._active, self._idle, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._worker = threading.Thread(target=self._work, name="localizer", daemon=True)
        self._worker.start()

    @property
    def dropped(self) -> int:
        """How many images gave way to a newer one."""
        return self._frames.dropped

    def start(self) -> None:
        """Answer images from now on."""
        self._active.set()

    def stop(self) -> None:
        """Answer no more, end all sources, and say so."""
        self._active.clear()
        # What is in work is still published, so it is waited for, but not where the process is to end.
        if self._idle.wait(JOIN_SECONDS if stopping.wanted.is_set() else None):
            self._safely(self._end_sources)

    def close(self) -> None:
        """End the worker, after `stop`."""
        self._closing.set()
        self._active.set()
        self._worker.join(JOIN_SECONDS)

    def put(self, message) -> None:
        """An image message has arrived."""
        self._frames.put((time.monotonic(), message))

    def change_localizer(self, localizer: Localizer) -> None:
        """Go on with the models and views of `localizer` from the next image on; all sources end."""

        def change() -> None:
            self._end_sources()
            self._localizer = localizer
            self._stream.change_localizer(localizer, self.values["views_per_frame"], self.values["look_closer"])

        self._changes.put(change)

    def configure(self, **tracking) -> None:
        """Change the thresholds of tracking, from the next image on."""
        self._changes.put(lambda: self._stream.configure(**tracking))

    def _now(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def _work(self) -> None:
        while not self._closing.is_set():
            if self._active.is_set():
                self._step()
            else:
                self._idle.set()
                self._active.wait()
                self._idle.clear()  # before it is looked again whether there is something to do: see `stop`

    def _step(self) -> None:
        """What there is to do now, after at most WAIT_SECONDS."""
        while not self._changes.empty():
            self._safely(self._changes.get())
        begun = time.monotonic()
        frame = self._frames.take(WAIT_SECONDS, not_before=self._next_start)
        if frame is None and time.monotonic() - begun > 2 * WAIT_SECONDS:
            # This process stood still, and so did the thread that takes images off DDS: one may be coming.
            frame = self._frames.take(WAIT_SECONDS, not_before=self._next_start)
        if frame is not None:
            self._next_start = next_start(self._next_start, self.values["rate"], time.monotonic())
            self._safely(self._answer, *frame)
        if time.monotonic() - self._last_answer > self._patience():
            self._safely(self._end_sources)
            if time.monotonic() >= self._next_listening:
                self._next_listening = time.monotonic() + LISTEN_SECONDS
                self._safely(self._listen)

    def _patience(self) -> float:
        """Seconds without an answer after which the last one no longer holds; never less than the images' own pace."""
        rate = self.values["rate"]
        return max(self.values["sensor_timeout"], 1.5 / rate if rate > 0 else 0.0)

    def _safely(self, step, *arguments) -> None:
        """Whatever one image brings about, the node must live on and say so."""
        try:
            step(*arguments)
        except Exception as error:
            self._health.failures += 1
            self._node.get_logger().error(
                f"an image failed: {type(error).__name__}: {error}", throttle_duration_sec=WARN_SECONDS
            )

    def _answer(self, arrived: float, message) -> None:
        if time.monotonic() - arrived > self.values["sensor_timeout"]:  # at a low rate it may have waited for long
            self._health.late_images += 1
            return
        captured = self._captured(message.header, arrived)
        if 0.0 <= self._ended - captured < self.values["sensor_timeout"]:  # of before the end that has been told
            self._health.late_images += 1
            return
        sound = self._sound_until(captured + self.values["audio_latency"])
        heard = None if sound is None else self._stream.hear(*sound)  # beside the decoding
        try:
            projection = self.values["projection"]
            image = converters.message_to_rgb(message, self._localizer.useful_width(projection))
            image = check_image(image, projection)
        except ValueError as error:
            self._health.image_was_bad()
            self._node.get_logger().warning(f"image left out: {error}", throttle_duration_sec=WARN_SECONDS)
            return
        self._health.image_was_good()
        if message.header.frame_id != self._camera_frame:  # directions of another camera, or of another mounting
            self._end_sources()
            self._camera_frame = message.header.frame_id
            if hint := optical_frame(self._header_of(message.header).frame_id):
                self._node.get_logger().warning(hint, throttle_duration_sec=FRAME_WARN_SECONDS)
        if self.keeping is not None:
            self.keeping.put(image, captured)
        scene = self._nothing(captured) if heard is None else self._localize(image, heard, captured)
        if scene is not None:
            self._map = scene.map
            self._last_captured = scene.time
            self._publish(scene, self._header_of(message.header))
            self._health.image_frame = self._last_header.frame_id

    def _captured(self, header: Header, arrived: float) -> float:
        captured = converters.stamp_to_seconds(header.stamp)
        if captured == 0:
            self._node.get_logger().warning("images have no stamp: the time of arrival is taken to find their sound",
                                            throttle_duration_sec=STAMP_WARN_SECONDS)  # fmt: skip
            captured = self._now() - (time.monotonic() - arrived)
        return captured

    def _localize(self, image: np.ndarray, heard: Hearing, captured: float) -> Localization | None:
        """The scene of an image; None where its sound cannot be used."""
        try:
            return self._stream.look(image, heard, captured)
        except ValueError as error:
            self._health.sound_was_bad()
            self._health.left_out += 1
            self._node.get_logger().warning(f"sound left out, and its image: {error}",
                                            throttle_duration_sec=WARN_SECONDS)  # fmt: skip
            return None

    def _sound_until(self, until: float) -> tuple[np.ndarray, int] | None:
        """Samples and rate of the window that ends at `until` (capture time), or None where there is no sound."""
        sound = self.sound
        if sound is None:
            return None
        buffer = sound.buffer  # once: it is replaced when the rate changes
        if (latest := buffer.latest) is None:
            return None
        window = self._localizer.window_seconds
        most = min(self.values["sensor_timeout"], window - MIN_SOUND_SECONDS)  # older sound is not in the window
        is_late = until - latest > most
        samples = np.zeros(0, np.float32) if is_late else buffer.read(until, window)
        is_early = not samples.size and latest - until > most
        self._note_gap(abs(latest - until) if is_late or is_early else None, most)
        return (samples, buffer.sample_rate) if samples.size >= MIN_SOUND_SECONDS * buffer.sample_rate else None

    def _note_gap(self, gap: float | None, patience: float) -> None:
        """A moment's gap, while the clocks of both jump one after the other, is none."""
        if gap is None:
            self._apart_since = self.sound_gap = None
            return
        self._apart_since = self._apart_since or time.monotonic()
        self.sound_gap = gap if time.monotonic() - self._apart_since > patience else None

    def _nothing(self, captured: float) -> Localization:
        """The scene of an image without sound; ends what sounded before."""
        return Localization((), np.zeros_like(self._map), (), False, captured, self._stream.silence(captured))

    def _header_of(self, header: Header) -> Header:
        return Header(stamp=header.stamp, frame_id=self.values["frame_id"] or header.frame_id)

    def _publish(self, scene: Localization, header: Header) -> None:
        self._outputs.publish(scene, header)
        self._health.frame_answered(self._now() - scene.time)
        self._last_header, self._last_answer = header, time.monotonic()

    def _end_sources(self) -> None:
        """The last answer no longer holds: end all sources, once. The capture clock went on since, as time did."""
        last, self._last_header = self._last_header, None
        if last is None:
            return
        ended = self._last_captured + time.monotonic() - self._last_answer
        header = Header(stamp=converters.seconds_to_stamp(ended), frame_id=last.frame_id)
        self._outputs.publish(self._nothing(ended), header)
        self._ended = ended

    def _listen(self) -> None:
        """Say what is heard, though there is no image."""
        sound = self.sound
        if sound is None or sound.status().state != "ok":
            return
        buffer = sound.buffer
        if (latest := buffer.latest) is None:
            return
        samples = buffer.read(latest, self._localizer.window_seconds)
        if samples.size < MIN_SOUND_SECONDS * buffer.sample_rate:
            return
        heard = latest - self.values["audio_latency"]  # on the clock of the images
        try:
            scene = self._stream.listen(samples, buffer.sample_rate, heard)
        except ValueError as error:
            self._health.sound_was_bad()
            self._node.get_logger().warning(f"sound left out: {error}", throttle_duration_sec=WARN_SECONDS)
            return
        header = Header(stamp=converters.seconds_to_stamp(heard), frame_id=self._camera_frame)
        self._outputs.publish_heard(scene, self._header_of(header))
