"""Counters and latencies of the localizer node, and the diagnostics made of them. Safe to use from several threads."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from avssl_ros.audio_input import AudioStatus
from avssl_ros.states import OK, STALE, Sensor, State

RECENT_SECONDS = 10.0
PACE_SECONDS = 5.0  # of images at least, before it is said that they come too fast
KEEPS_UP = 0.8  # of the images that are wanted: a machine that has taken fewer does not keep up
MAX_CLOCK_GAP = 5.0  # seconds between the newest sound and the newest image that cannot be delay any more
_LEVELS = {"ok": DiagnosticStatus.OK, "stale": DiagnosticStatus.STALE, "absent": DiagnosticStatus.ERROR}


class Health:
    """What happened so far. `latency` is capture to publish in seconds; the recent ones give p50 and p95.

    received = answered + bad_images + late_images + left_out + failures + what was dropped for a newer image.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.received = self.answered = self.bad_images = self.bad_sound = self.failures = 0
        self.late_images = self.left_out = 0
        self.image_frame = ""  # that the last results are in
        self.last_arrival: float | None = None  # monotonic, as are the next
        self._bad_since: float | None = None  # the first of the images that cannot be read and have no good one after
        self._last_bad_image = -float("inf")
        self._recent: deque[tuple[float, float]] = deque()  # (monotonic, latency)
        self._paces: deque[tuple[float, int, int]] = deque()  # (monotonic, images that came, those taken) until then

    def image_arrived(self) -> None:
        self.received += 1
        self.last_arrival = time.monotonic()

    def image_was_bad(self) -> None:
        self.bad_images += 1
        self._last_bad_image = time.monotonic()
        self._bad_since = self._bad_since or self._last_bad_image

    def image_was_good(self) -> None:
        self._bad_since = None

    def sound_was_bad(self) -> None:
        with self._lock:  # the callback that reads sound and the worker that hears it may both say so
            self.bad_sound += 1

    def had_bad_image_lately(self) -> bool:
        return time.monotonic() - self._last_bad_image < RECENT_SECONDS

    def has_only_bad_images(self, seconds: float) -> bool:
        """Whether none could be read for so long, though some arrived."""
        bad_since = self._bad_since
        return bad_since is not None and time.monotonic() - bad_since > seconds

    def frame_answered(self, latency: float) -> None:
        now = time.monotonic()
        with self._lock:
            self.answered += 1
            self._recent.append((now, latency))
            while self._recent[0][0] < now - RECENT_SECONDS:
                self._recent.popleft()

    def pace(self, dropped: int) -> tuple[float, float]:
        """Images per second that came, and that were taken, since the oldest call of the last 10 s; 0 at first.

        Args:
            dropped: how many gave way to a newer one so far, and were not taken.
        """
        now, taken = time.monotonic(), self.received - dropped
        self._paces.append((now, self.received, taken))
        while self._paces[0][0] < now - RECENT_SECONDS:
            self._paces.popleft()
        then, came, taken_then = self._paces[0]
        if now - then < PACE_SECONDS:
            return 0.0, 0.0
        return (self.received - came) / (now - then), (taken - taken_then) / (now - then)

    def seconds_without_image(self) -> float | None:
        return None if self.last_arrival is None else time.monotonic() - self.last_arrival

    def recent(self) -> tuple[float, float | None, float | None]:
        """Answers per second, and latency p50 and p95 in seconds (None without answers), of the last 10 seconds."""
        now = time.monotonic()
        with self._lock:
            recent = [(when, latency) for when, latency in self._recent if when >= now - RECENT_SECONDS]
        if len(recent) < 2:
            return 0.0, None, None
        p50, p95 = np.percentile([latency for _, latency in recent], [50, 95])
        return (len(recent) - 1) / max(1e-3, now - recent[0][0]), float(p50), float(p95)


def microphone_sensor(status: AudioStatus, gap: float | None, complaint: str) -> Sensor:
    """The microphone's state for those who wait for sources: sound that fits no image is of no use to them.

    Args:
        gap: seconds between the newest sound and the newest image where they are too far apart, else None.
        complaint: what is wrong with sound that does come, '' for nothing.
    """
    if status.state != OK:
        return Sensor(status.state, status.detail)
    if gap is None:
        return Sensor(OK, f"{status.detail}: {complaint}" if complaint else "")
    if gap <= MAX_CLOCK_GAP:
        return Sensor(STALE, f"{status.detail}: it comes {gap:.1f} s apart from its images; audio_latency evens it out")
    return Sensor(
        STALE,
        f"sound and images are stamped {gap:.1f} s apart: are they of the same clock? "
        "(a recording needs use_sim_time and its own sound; audio_latency evens out small differences)",
    )


def camera_status(node: str, topic: str, health: Health, sensor: Sensor, recoveries: int) -> DiagnosticStatus:
    age = health.seconds_without_image()
    if sensor.state != OK:
        level = DiagnosticStatus.ERROR if age is None else _LEVELS[sensor.state]
        message = sensor.hint
    elif health.had_bad_image_lately():
        level, message = DiagnosticStatus.WARN, "images arrive that cannot be read; see the log"
    elif sensor.hint:
        level, message = DiagnosticStatus.WARN, sensor.hint
    else:
        level, message = DiagnosticStatus.OK, "images arrive"
    figures = {
        "state": sensor.state,
        "received": health.received,
        "bad images": health.bad_images,
        "recoveries": recoveries,
        "seconds since the last": "never" if age is None else f"{age:.2f}",
    }
    return _status(level, f"{node}: camera", message, topic, figures)


def sound_status(
    node: str, status: AudioStatus, sensor: Sensor, gap: float | None, health: Health, recoveries: int
) -> DiagnosticStatus:
    level, message = _LEVELS[sensor.state], sensor.hint or status.detail
    if sensor.state == OK and sensor.hint:
        level = DiagnosticStatus.WARN
    elif gap is not None and gap > MAX_CLOCK_GAP and status.state == OK:
        level = DiagnosticStatus.ERROR
    figures = {
        "state": sensor.state,
        "overflows": status.overflows,
        "restarts": status.restarts,
        "bad sound": health.bad_sound,
        "recoveries": recoveries,
    }
    return _status(level, f"{node}: microphone", message, "", figures)


def processing_status(node: str, health: Health, dropped: int, state: State, most: float) -> DiagnosticStatus:
    """To be made once a second. `most`: images per second that are wanted, 0 for all that come."""
    rate, p50, p95 = health.recent()
    came, taken = health.pace(dropped)
    wanted = min(came, most) if most > 0 else came
    if health.failures:
        level = DiagnosticStatus.ERROR
        message = f"{health.failures} images failed for a reason of the program's own; see the log"
    elif taken < KEEPS_UP * wanted:
        level = DiagnosticStatus.WARN
        message = (f"{state.mode}: {taken:.1f} of {wanted:.1f} images per second, the others are dropped: smaller "
                   "views (view_size), fewer at a time (views_per_frame) or look_closer:=false cost less time")
    elif p50 is not None:
        level, message = DiagnosticStatus.OK, f"{state.mode}: {rate:.1f} images per second"
    else:
        level, message = DiagnosticStatus.STALE, f"{state.mode}: nothing to process"
    figures = {
        "mode": state.mode,
        "since": f"{state.since:.3f}",
        "rate": f"{rate:.2f}",
        "latency p50": "none" if p50 is None else f"{p50:.4f}",
        "latency p95": "none" if p95 is None else f"{p95:.4f}",
        "received": health.received,
        "answered": health.answered,
        "dropped": dropped,
        "too late": health.late_images,
        "left out for their sound": health.left_out,
        "failures": health.failures,
    }
    return _status(level, f"{node}: processing", message, "", figures)


def _status(level: bytes, name: str, message: str, hardware: str, figures: dict) -> DiagnosticStatus:
    values = [KeyValue(key=key, value=str(value)) for key, value in figures.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware, values=values)
