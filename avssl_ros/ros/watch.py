"""Looks after the sensors of the active localizer: `~/state` and `/diagnostics`."""

from __future__ import annotations

import ctypes
import time

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from avssl_ros.audio_input import AudioStatus
from avssl_ros.ros import health as diagnosis
from avssl_ros.ros.answers import Answers
from avssl_ros.ros.camera import Camera
from avssl_ros.ros.health import Health
from avssl_ros.ros.outputs import Outputs
from avssl_ros.sound_quality import complaint
from avssl_ros.states import ABSENT, LOCALIZING, OK, Sensor, States

LOOK_SECONDS = 0.1  # how late a change may be noticed
REPORT_SECONDS = 1.0
QUALITY_SECONDS = 1.0  # of sound that are judged
PATIENCE_SECONDS = 3.0  # before the log warns of a sensor that does not come
WARN_SECONDS = 50.0
GIVE_BACK_SECONDS = 60.0


def give_memory_back() -> None:
    """What is free goes back to the system, where the C library (glibc) can do that, in some milliseconds.

    By itself it keeps what images and messages leave between what is still held: where images wait, come in floods or
    change their size, some 20 MB more.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Watch:
    """Publishes the state on every change and once a second, diagnostics once a second, until `close`.

    sound_error: why there is no source of sound at all, '' where there is one.
    """

    def __init__(
        self, node: Node, camera: Camera, answers: Answers, outputs: Outputs, health: Health, states: States
    ):
        self.sound_error = ""
        self._node, self._camera, self._answers = node, camera, answers
        self._outputs, self._health, self._states = outputs, health, states
        self._complaint = ""
        self._changed_at = time.monotonic()
        self._next_report = 0.0
        self._next_giving_back = time.monotonic() + GIVE_BACK_SECONDS
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a recording that stands still must not silence the node
        self._timer = node.create_timer(LOOK_SECONDS, self._look, clock=steady)

    def close(self, why: str) -> None:
        """Publish a last state: the sensors have been let go, for the reason `why`."""
        self._node.destroy_timer(self._timer)
        self._states.update(Sensor(ABSENT, why), Sensor(ABSENT), self._now())
        self._outputs.publish_state(self._states.now)

    def _now(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def _look(self) -> None:
        camera = self._camera.sensor(self._health, self._answers.values["sensor_timeout"])
        status, gap = self._sound(camera)
        microphone = diagnosis.microphone_sensor(status, gap, self._complaint)
        is_new = self._states.update(camera, microphone, self._now())
        is_due = time.monotonic() >= self._next_report
        if is_new:
            self._changed_at = time.monotonic()
        if is_new or is_due:
            self._outputs.publish_state(self._states.now)
        if is_due:
            self._next_report = time.monotonic() + REPORT_SECONDS
            self._complaint = self._judge_sound(status)
            self._diagnose(camera, microphone, status, gap)
            self._warn()
        if time.monotonic() >= self._next_giving_back:
            self._next_giving_back = time.monotonic() + GIVE_BACK_SECONDS
            give_memory_back()

    def _sound(self, camera: Sensor) -> tuple[AudioStatus, float | None]:
        sound = self._answers.sound
        if sound is None:
            return AudioStatus(ABSENT, self.sound_error, 0, None), None
        return sound.status(), self._answers.sound_gap if camera.state == OK else None

    def _judge_sound(self, status: AudioStatus) -> str:
        sound = self._answers.sound
        if sound is None or status.state != OK:
            return ""
        buffer = sound.buffer
        return complaint(buffer.read(status.last_time, QUALITY_SECONDS)) if status.last_time is not None else ""

    def _diagnose(self, camera: Sensor, microphone: Sensor, status: AudioStatus, gap: float | None) -> None:
        name = self._node.get_fully_qualified_name().lstrip("/")  # /diagnostics is one topic for all namespaces
        health, again = self._health, self._states.recoveries
        message = DiagnosticArray(
            status=[
                diagnosis.camera_status(name, self._camera.topic, health, camera, again["camera"]),
                diagnosis.sound_status(name, status, microphone, gap, health, again["microphone"]),
                diagnosis.processing_status(name, health, self._answers.dropped, self._states.now,
                                            self._answers.values["rate"]),  # fmt: skip
            ]
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._outputs.publish_diagnostics(message)

    def _warn(self) -> None:
        state = self._states.now
        if state.mode != LOCALIZING and time.monotonic() - self._changed_at > PATIENCE_SECONDS:
            self._node.get_logger().warning(f"{state.mode}: {state.hint}", throttle_duration_sec=WARN_SECONDS)
