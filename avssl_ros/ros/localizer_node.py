"""Node `localizer`: camera images and sound in; sources, direction, events, markers and map out.

    localizer --ros-args -r image/compressed:=/camera/image/compressed -p audio_source:=topic

Subscribes to `image/compressed` (or `image`, by the parameter image_transport) and, with audio_source "topic", to
`audio` (see audio_topic.py for its types). Publishes, with the stamp of the image they belong to:

- `~/sources` (sensor_msgs/PointCloud2): one point a source, for every processed image; empty when nothing sounds.
- `~/scene` (std_msgs/String): the same with labels, and sounds heard but not in view, as one JSON object.
- `~/direction` (geometry_msgs/PoseStamped): +x points at the strongest source; only while something sounds.
- `~/events` (std_msgs/String): one JSON object per onset, change and offset.
- `~/markers` (visualization_msgs/MarkerArray), `~/map` (sensor_msgs/Image, 32FC1): only while someone subscribes.
- `/diagnostics` (diagnostic_msgs/DiagnosticArray), once per second.

Parameters: parameters.py. Callbacks only keep the newest image and one worker thread does the rest, so the node never
works on an image that is older than it must be. When images or sound stop, all sources end: their offsets are published
and one last empty `~/sources`, stamped with the time at which that was noticed.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from std_msgs.msg import Header

from avssl_ros.audio_input import AudioDeviceError, AudioSource, AudioStatus, FileAudio, Microphone
from avssl_ros.geometry import ViewLayout
from avssl_ros.localizer import Localizer, check_image
from avssl_ros.noise import NoiseProfile
from avssl_ros.ros import converters, health, parameters
from avssl_ros.ros.audio_topic import AudioTopic
from avssl_ros.ros.camera import Camera
from avssl_ros.ros.newest import Newest
from avssl_ros.ros.outputs import Outputs
from avssl_ros.ros.runtime import Process, run
from avssl_ros.ros.source_frames import SourceFrames
from avssl_ros.scene import Localization

WAIT_SECONDS = 0.1  # how often the worker looks whether it should end
MIN_SOUND_SECONDS = 0.25  # less than this says nothing: right after the start, or after a gap
MAX_CLOCK_GAP = 5.0  # seconds between the newest sound and the newest image that cannot be delay any more
JOIN_SECONDS = 1.2
FLUSH_SECONDS = 0.5
WARN_SECONDS = 5.0
PATIENT_LOOKS = 3  # diagnoses, one a second, before a camera that is there but sends nothing is worth a warning


def make_localizer(values: dict) -> Localizer:
    """The localizer that the parameters ask for. Raises FileNotFoundError or ValueError, as Localizer does."""
    localizer = Localizer(
        models=values["models"] or None,
        providers=None if values["providers"] == ["auto"] else values["providers"],
        threads=values["threads"] or None,
        layout=ViewLayout(tuple(values["view_azimuths_deg"]), values["view_elevation_deg"], values["view_fov_deg"],
                          values["view_vertical_fov_deg"]),
        fov_deg=values["fov_deg"],
        view_size=values["view_size"] or None,
    )
    if values["noise_profile"]:
        localizer.noise = NoiseProfile.load(values["noise_profile"])
    return localizer


def warm_up(localizer: Localizer, projection: str) -> None:
    """One step on noise: it loads code and computes tables, so that the first image need not wait for that."""
    noise = np.random.default_rng(0).standard_normal(localizer.sample_rate).astype(np.float32) / 10
    localizer.localize(np.zeros((640, 1280, 3), np.uint8), noise, localizer.sample_rate, projection)


class LocalizerNode(Process):
    """See the top of this file."""

    def __init__(self):
        super().__init__("localizer")
        parameters.declare(self, parameters.LOCALIZER)
        self._values = parameters.values(self, parameters.LOCALIZER)
        self._localizer = make_localizer(self._values)
        tracking = {name: self._values[name] for name in parameters.TRACKING}
        warm_up(self._localizer, self._values["projection"])
        self._stream = self._localizer.stream(
            self._values["projection"], self._values["views_per_frame"], **tracking
        )
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

        self._health = health.Health()
        self._outputs = Outputs(self, SourceFrames(self) if self._values["broadcast_tf"] else None)
        self._sound_error = ""
        self._sound = self._open_sound(self._values["audio_source"])
        self._clock_gap: float | None = None
        self._last_header: Header | None = None  # of the last answer while it stands, None once sources have ended
        self._last_captured = 0.0  # capture time of the last answer
        self._last_answer = self._next_start = 0.0  # monotonic
        self._map = np.zeros((1, 1), np.float32)  # the last one, for its size

        self._silent_looks = 0
        self._frames: Newest = Newest()
        self._camera = Camera(self, self._values["image_transport"], self._values["image_reliability"], self._on_image)
        self.create_timer(1.0, self._diagnose)
        self._stopping = threading.Event()
        self._worker = threading.Thread(target=self._work, name="localizer", daemon=True)
        self._worker.start()
        self.get_logger().info(
            f"ready: images from {self._camera.topic}, sound from {self._values['audio_source']}, "
            f"{', '.join(self._localizer.providers)}"
        )

    def close(self) -> None:
        """End the worker and all sources, and say so."""
        self._stopping.set()
        self._worker.join(JOIN_SECONDS)
        if not self._worker.is_alive():
            self._safely(self._end_sources)
            self._outputs.flush(FLUSH_SECONDS)
        if self._sound is not None:
            self._sound.stop()

    # ---- parameters

    def _check_parameters(self, changed) -> SetParametersResult:
        """Refuse thresholds that contradict each other."""
        try:
            dataclasses.replace(self._stream.config, **_tracking_of(changed))
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changed) -> None:
        if tracking := _tracking_of(changed):
            self._stream.configure(**tracking)
        self._values = {**self._values, **{p.name: p.value for p in changed if p.name in self._values}}

    # ---- sensors

    def _open_sound(self, wanted: str) -> AudioSource | None:
        """The started source, or None where this machine cannot have one: the node lives on and diagnostics say why."""
        try:
            if wanted == "topic":
                source = AudioTopic(self, self._health.sound_was_bad)
            elif wanted == "microphone":
                source = Microphone(self._values["microphone"] or None, clock=self._now)
            else:
                source = FileAudio(wanted, loop=True, clock=self._now)
        except AudioDeviceError as error:
            self._sound_error = str(error)
            self.get_logger().error(self._sound_error)
            return None
        source.start()
        return source

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _on_image(self, message) -> None:
        self._health.image_arrived()
        self._frames.put(message)

    # ---- the worker

    def _work(self) -> None:
        while not self._stopping.is_set():
            message = self._frames.take(WAIT_SECONDS, not_before=self._next_start)
            if message is not None:
                rate = self._values["rate"]
                self._next_start = time.monotonic() + (1.0 / rate if rate > 0 else 0.0)
                self._safely(self._answer, message)
            if time.monotonic() - self._last_answer > self._patience():
                self._safely(self._end_sources)

    def _patience(self) -> float:
        """Seconds without an answer after which the last one no longer holds; never less than the images' own pace."""
        rate = self._values["rate"]
        return max(self._values["sensor_timeout"], 1.5 / rate if rate > 0 else 0.0)

    def _safely(self, step, *arguments) -> None:
        """Whatever one image brings about, the node must live on and say so."""
        try:
            step(*arguments)
        except Exception as error:
            self._health.failures += 1
            self.get_logger().error(
                f"an image failed: {type(error).__name__}: {error}", throttle_duration_sec=WARN_SECONDS
            )

    def _answer(self, message) -> None:
        try:
            projection = self._values["projection"]
            image = converters.message_to_rgb(message, self._localizer.useful_width(projection))
            image = check_image(image, projection)
        except ValueError as error:
            self._health.image_was_bad()
            self.get_logger().warning(f"image left out: {error}", throttle_duration_sec=WARN_SECONDS)
            return
        captured = converters.stamp_to_seconds(message.header.stamp)
        if captured == 0:
            self.get_logger().warning(
                f"images on {self._camera.topic} have no stamp: the time of arrival is taken to find their sound",
                throttle_duration_sec=10 * WARN_SECONDS,
            )
            captured = self._now()
        sound = self._sound_until(captured + self._values["audio_latency"])
        if sound is None:
            scene = self._nothing(captured)
        else:
            try:
                scene = self._stream.process(image, *sound, captured)
            except ValueError as error:
                self._health.sound_was_bad()
                self.get_logger().warning(f"sound left out, and its image: {error}", throttle_duration_sec=WARN_SECONDS)
                return
        self._map = scene.map
        self._last_captured = captured
        self._publish(scene, self._header_of(message.header))

    def _sound_until(self, until: float) -> tuple[np.ndarray, int] | None:
        """Samples and rate of the window that ends at `until` (capture time), or None where there is no sound."""
        if self._sound is None:
            return None
        buffer = self._sound.buffer  # once: it is replaced when the rate changes
        if (latest := buffer.latest) is None:
            return None
        gap = abs(latest - until)
        self._clock_gap = gap if gap > MAX_CLOCK_GAP and self._sound.status().state == "ok" else None
        if until - latest > self._values["sensor_timeout"]:
            return None
        samples = buffer.read(until, self._localizer.window_seconds)
        return (samples, buffer.sample_rate) if samples.size >= MIN_SOUND_SECONDS * buffer.sample_rate else None

    def _nothing(self, captured: float) -> Localization:
        """The scene of an image without sound; ends what sounded before."""
        return Localization((), np.zeros_like(self._map), (), False, captured, self._stream.silence(captured))

    def _header_of(self, header: Header) -> Header:
        return Header(stamp=header.stamp, frame_id=self._values["frame_id"] or header.frame_id)

    def _publish(self, scene: Localization, header: Header) -> None:
        self._outputs.publish(scene, header)
        self._health.frame_answered(self._now() - converters.stamp_to_seconds(header.stamp))
        self._last_header, self._last_answer = header, time.monotonic()

    def _end_sources(self) -> None:
        """The last answer no longer holds: end all sources, once. The capture clock went on since, as time did."""
        last, self._last_header = self._last_header, None
        if last is None:
            return
        ended = self._last_captured + time.monotonic() - self._last_answer
        header = Header(stamp=converters.seconds_to_stamp(ended), frame_id=last.frame_id)
        self._outputs.publish(self._nothing(ended), header)

    # ---- diagnostics

    def _diagnose(self) -> None:
        timeout = self._values["sensor_timeout"]
        age = self._health.seconds_without_image()
        why_nothing = self._camera.why_nothing(ever=age is not None)
        is_silent = (age is None or age > timeout) and self._camera.publishers()
        self._silent_looks = self._silent_looks + 1 if is_silent else 0
        if self._silent_looks >= PATIENT_LOOKS:
            self.get_logger().warning(why_nothing, throttle_duration_sec=10 * WARN_SECONDS)
        name = self.get_name()
        status = self._sound.status() if self._sound is not None else AudioStatus("absent", self._sound_error, 0, None)
        message = DiagnosticArray(
            status=[
                health.camera_status(name, self._camera.topic, self._health, timeout, why_nothing),
                health.sound_status(name, status, self._health, self._clock_gap),
                health.processing_status(name, self._health, self._frames.dropped),
            ]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._outputs.publish_diagnostics(message)


def _tracking_of(changed) -> dict:
    return {parameter.name: parameter.value for parameter in changed if parameter.name in parameters.TRACKING}


def main(args: list[str] | None = None) -> int:
    return run(LocalizerNode, args)


if __name__ == "__main__":
    sys.exit(main())
