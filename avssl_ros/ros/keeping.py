"""Keeps what the active localizer sees and hears as mp4 segments (parameter `record`), in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np
from rclpy.node import Node

from avssl_ros.audio_input import AudioSource
from avssl_ros.recorder import GB, Recorder, SoundTap
from avssl_ros.rhythm import Rhythm

WAIT_SECONDS = 0.1
WAITING = 4  # pictures that the encoder may lag behind; further ones are left out
JOIN_SECONDS = 1.0
WARN_SECONDS = 30.0


class Keeping:
    """From its making until `close`.

    Args:
        node: for the log.
        values: gives the node's parameters: record, record_limit, record_rate, audio_latency.
        sound: gives the source of sound there is now, or None.

    Raises OSError where the folder cannot be made.
    """

    def __init__(self, node: Node, values: Callable[[], dict], sound: Callable[[], AudioSource | None]):
        self._node, self._values, self._sound = node, values, sound
        given = values()
        self._recorder = Recorder(given["record"], limit_bytes=given["record_limit"] * GB, fps=given["record_rate"])
        self._pictures: queue.Queue[tuple[np.ndarray, float]] = queue.Queue(WAITING)
        self._rhythm = Rhythm(given["record_rate"])
        self._tap: tuple[AudioSource, SoundTap] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="record", daemon=True)
        self._thread.start()

    def put(self, image: np.ndarray, captured: float) -> None:
        """An image RGB uint8 (H, W, 3) and its capture time; it is kept if it is due and the encoder keeps up."""
        self._rhythm.rate = self._values()["record_rate"]
        if not self._rhythm.is_due(time.monotonic()):
            return
        try:
            self._pictures.put_nowait((image, captured))
        except queue.Full:
            self._warn("the recording leaves pictures out: the processor is too slow for record_rate")

    def close(self) -> None:
        """Finish the files."""
        self._stopping.set()
        self._thread.join(JOIN_SECONDS)

    def _warn(self, text: str) -> None:
        self._node.get_logger().warning(text, throttle_duration_sec=WARN_SECONDS)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._step()
            except Exception as error:  # a full disk must not end the localizer, and may be emptied
                self._warn(f"nothing is recorded: {type(error).__name__}: {error}")
        self._recorder.close()

    def _step(self) -> None:
        try:
            picture = self._pictures.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            picture = None
        if (heard := self._hear()) is not None:
            samples, rate, first = heard
            self._recorder.add_sound(samples, rate, first - self._values()["audio_latency"])
        if picture is not None:
            self._recorder.add_frame(*picture)

    def _hear(self) -> tuple[np.ndarray, int, float] | None:
        source = self._sound()
        if source is None:
            return None
        if self._tap is None or self._tap[0] is not source:
            self._tap = source, SoundTap(source)
        return self._tap[1].read()
