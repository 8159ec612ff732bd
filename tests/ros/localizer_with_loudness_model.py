"""The real node `localizer` around a model that is easily foreseen: whatever is brightest sounds while it is loud.

Run as a process by the tests, so that what the node does with images, sound, time and failures is tested apart from how
good the shipped model is. Tests with the shipped model stand beside it (test_ros_shipped_model.py).
"""

from __future__ import annotations

if __name__ == "__main__":
    from avssl_ros.ros import stopping

    stopping.listen()

import dataclasses
import sys

import numpy as np

from avssl_ros.geometry import pixel_to_direction
from avssl_ros.ros import localizer_node
from avssl_ros.scene import Event, Localization, Source, Unseen
from avssl_ros.tracking import TrackingConfig

LOUD = 0.05  # root mean square


class LoudnessStream:
    def __init__(self, config: TrackingConfig):
        self.config = config
        self._current: Source | None = None
        self._next_id = 1

    def configure(self, **changes) -> None:
        self.config = dataclasses.replace(self.config, **changes)

    def hear(self, audio: np.ndarray, sample_rate: int):
        return lambda: (audio, sample_rate)

    def look(self, image: np.ndarray, heard, time: float) -> Localization:
        audio, sample_rate = heard()
        if not np.isfinite(audio).all():
            raise ValueError("audio must be finite")
        confidence = min(1.0, 10 * float(np.sqrt(np.mean(audio[-sample_rate // 5 :] ** 2))))
        map_ = np.zeros((32, 64), np.float32)
        if confidence < max(10 * LOUD, self.config.onset_confidence):
            return Localization((), map_, (), False, time, self.silence(time))
        y, x = np.unravel_index(np.argmax(image.sum(axis=2)), image.shape[:2])
        azimuth, elevation = (float(angle) for angle in pixel_to_direction(x, y, image.shape[1], image.shape[0]))
        map_[y * 32 // image.shape[0], x * 64 // image.shape[1]] = confidence
        is_new = self._current is None
        identity = self._next_id if is_new else self._current.id
        self._next_id += is_new
        self._current = Source(
            azimuth, elevation, 0.1, confidence, "lamp", 7, np.zeros(1), map_,
            identity, "onset" if is_new else "active", time if is_new else self._current.onset,
        )  # fmt: skip
        events = (Event("onset", time, self._current),) if is_new else ()
        return Localization((self._current,), map_, (), True, time, events)

    def listen(self, audio: np.ndarray, sample_rate: int, time: float) -> Localization:
        loudness = float(np.sqrt(np.mean(audio[-sample_rate // 5 :] ** 2)))
        heard = (Unseen("lamp", 7, min(1.0, 10 * loudness), np.zeros(1)),) if loudness > LOUD else ()
        return Localization((), np.zeros((1, 1), np.float32), heard, bool(heard), time, self.silence(time))

    def change_localizer(self, localizer, views_per_frame: int, look_closer: bool) -> tuple[Event, ...]:
        return self.silence(0.0)

    def silence(self, time: float) -> tuple[Event, ...]:
        ended, self._current = self._current, None
        return () if ended is None else (Event("offset", time, ended),)


class LoudnessLocalizer:
    window_seconds = 2.0
    sample_rate = 32000
    providers = ("LoudnessModel",)

    def __init__(self, models=None, providers=None, threads=None, layout=None, fov_deg=90.0, view_size=None):
        self.layout = layout

    def with_views(self, layout=None, fov_deg=90.0, view_size=None) -> LoudnessLocalizer:
        return LoudnessLocalizer(layout=layout)

    def useful_width(self, projection: str) -> int:
        return 4096

    def localize(self, image, audio, sample_rate, projection="equirectangular") -> Localization:
        stream = self.stream()
        return stream.look(image, stream.hear(audio, sample_rate), 0.0)

    def stream(self, projection="equirectangular", views_per_frame=0, look_closer=True, **tracking) -> LoudnessStream:
        return LoudnessStream(TrackingConfig(**tracking))


if __name__ == "__main__":
    localizer_node.Localizer = LoudnessLocalizer
    sys.exit(localizer_node.main())
