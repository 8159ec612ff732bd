"""Counters and latencies of the localizer node, and the diagnostics made of them. Safe to use from several threads."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from avssl_ros.audio_input import AudioStatus

RECENT_SECONDS = 10.0
OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE
_SOUND_LEVELS = {"ok": OK, "stale": STALE, "absent": ERROR}


class Health:
    """What happened so far. `latency` is capture to publish in seconds; the recent ones give p50 and p95."""

    def __init__(self):
        self._lock = threading.Lock()
        self.received = self.answered = self.bad_images = self.bad_sound = self.failures = 0
        self.last_arrival: float | None = None  # monotonic, as is the next
        self._last_bad_image = -float("inf")
        self._recent: deque[tuple[float, float]] = deque()  # (monotonic, latency)

    def image_arrived(self) -> None:
        self.received += 1
        self.last_arrival = time.monotonic()

    def image_was_bad(self) -> None:
        self.bad_images += 1
        self._last_bad_image = time.monotonic()

    def sound_was_bad(self) -> None:
        self.bad_sound += 1

    def had_bad_image_lately(self) -> bool:
        return time.monotonic() - self._last_bad_image < RECENT_SECONDS

    def frame_answered(self, latency: float) -> None:
        now = time.monotonic()
        with self._lock:
            self.answered += 1
            self._recent.append((now, latency))
            while self._recent[0][0] < now - RECENT_SECONDS:
                self._recent.popleft()

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


def camera_status(node: str, topic: str, health: Health, timeout: float, why_nothing: str) -> DiagnosticStatus:
    """`why_nothing`: what to tell where no image arrives."""
    age = health.seconds_without_image()
    if age is None or age > timeout:
        level, message = (ERROR if age is None else STALE), why_nothing
    elif health.had_bad_image_lately():
        level, message = WARN, "images arrive that cannot be read; see the log"
    else:
        level, message = OK, "images arrive"
    figures = {
        "received": health.received,
        "bad images": health.bad_images,
        "seconds since the last": "never" if age is None else f"{age:.2f}",
    }
    return _status(level, f"{node}: camera", message, topic, figures)


def sound_status(node: str, status: AudioStatus, health: Health, clock_gap: float | None) -> DiagnosticStatus:
    """`clock_gap`: seconds between the stamps of sound and images where they are of different clocks, else None."""
    level, message = _SOUND_LEVELS[status.state], status.detail
    if clock_gap is not None:
        level = ERROR
        message = (
            f"sound and images are stamped {clock_gap:.1f} s apart: are they of the same clock? "
            "(a recording needs use_sim_time and its own sound; audio_latency evens out small differences)"
        )
    figures = {"overflows": status.overflows, "restarts": status.restarts, "bad sound": health.bad_sound}
    return _status(level, f"{node}: microphone", message, "", figures)


def processing_status(node: str, health: Health, dropped: int) -> DiagnosticStatus:
    rate, p50, p95 = health.recent()
    level, message = (OK, f"{rate:.1f} images per second") if p50 is not None else (STALE, "nothing to process")
    if health.failures:
        level, message = ERROR, f"{health.failures} images failed for a reason of the program's own; see the log"
    figures = {
        "rate": f"{rate:.2f}",
        "latency p50": "none" if p50 is None else f"{p50:.4f}",
        "latency p95": "none" if p95 is None else f"{p95:.4f}",
        "answered": health.answered,
        "dropped": dropped,
        "failures": health.failures,
    }
    return _status(level, f"{node}: processing", message, "", figures)


def _status(level: bytes, name: str, message: str, hardware: str, figures: dict) -> DiagnosticStatus:
    values = [KeyValue(key=key, value=str(value)) for key, value in figures.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware, values=values)
