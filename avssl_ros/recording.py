"""The files one run leaves behind: sources.jsonl, overlay.mp4 and timeline.png, written as it goes.

    with Recording(folder, video.width, video.height, video.fps, sample_rate, video.projection) as recording:
        recording.add_sound(samples, time)        # as often as there is sound
        recording.add_scene(scene)                # one line of sources.jsonl
        recording.add_frame(image, time, scene)   # one picture of overlay.mp4
    recording.lines                               # what sources.jsonl holds, as dicts; of very long runs a part

Whatever ends the run, what was done is on the disk: lines are flushed one by one, and the mp4 is one that a killed
process leaves readable (mp4.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from avssl_ros.mp4 import Mp4Writer
from avssl_ros.overlay import draw
from avssl_ros.scene import Localization
from avssl_ros.timeline import draw_timeline

MAX_WIDTH = 1920  # of overlay.mp4: larger pictures are scaled down, as encoding them takes longer than localizing
RESULTS = SOURCES, OVERLAY, TIMELINE = ("sources.jsonl", "overlay.mp4", "timeline.png")  # names of the files
MAX_LINES = 40_000  # kept in memory for the timeline, over an hour at 10 Hz; about 50 MB


class Recording:
    """Writes the result files of one run into `folder`, which is created; files of the same names are replaced.

    Args:
        folder: where to.
        width, height, fps: of the pictures that will be added.
        sample_rate: Hz of the sound that will be added; None for an overlay without sound.
        projection, fov_deg: of the pictures, as in `overlay.draw`.
        title: heading of the timeline.
    """

    def __init__(
        self,
        folder: str | Path,
        width: int,
        height: int,
        fps: float,
        sample_rate: int | None,
        projection: str = "equirectangular",
        fov_deg: float = 90.0,
        title: str = "",
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines: list[dict] = []
        self._scenes, self._kept_every = 0, 1
        self._projection, self._fov_deg, self._title = projection, fov_deg, title
        scale = min(1.0, MAX_WIDTH / width)
        self._size = tuple(2 * round(side * scale / 2) for side in (width, height))
        self._jsonl = self.sources_path.open("w", encoding="utf-8")
        self._mp4 = Mp4Writer(self.overlay_path, *self._size, fps, sample_rate)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def sources_path(self) -> Path:
        return self.folder / SOURCES

    @property
    def overlay_path(self) -> Path:
        return self.folder / OVERLAY

    @property
    def timeline_path(self) -> Path:
        return self.folder / TIMELINE

    def add_scene(self, scene: Localization) -> None:
        """Append one line to sources.jsonl."""
        line = scene.to_dict()
        self._jsonl.write(json.dumps(line) + "\n")
        self._jsonl.flush()
        if self._scenes % self._kept_every == 0:
            self.lines.append(line)
        self._scenes += 1
        if len(self.lines) > MAX_LINES:
            del self.lines[1::2]
            self._kept_every *= 2

    def add_frame(self, image: np.ndarray, time: float, scene: Localization) -> None:
        """Append the picture, RGB uint8 (H, W, 3) captured at `time` seconds, with `scene` drawn on it."""
        if image.shape[1] > self._size[0]:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        self._mp4.add_frame(draw(image, scene, self._projection, self._fov_deg), time)

    def add_sound(self, samples: np.ndarray, time: float) -> None:
        """Append mono sound (n,) in [-1, 1] that begins at `time` seconds; where sound is missing there is silence."""
        self._mp4.add_sound(samples, time)

    def close(self) -> None:
        """Finish overlay.mp4 and draw timeline.png."""
        if self._jsonl.closed:
            return
        self._jsonl.close()
        self._mp4.close()
        draw_timeline(self.lines, self.timeline_path, self._title)
