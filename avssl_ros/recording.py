"""The files one run leaves behind: sources.jsonl, overlay.mp4 and timeline.png, written as it goes.

    with Recording(folder, video.width, video.height, video.fps, sample_rate, video.projection) as recording:
        recording.add_sound(samples, time)        # as often as there is sound
        recording.add_scene(scene)                # one line of sources.jsonl
        recording.add_frame(image, time, scene)   # one picture of overlay.mp4
    recording.lines                               # what sources.jsonl holds, as dicts; of very long runs a part

Whatever ends the run, what was done is on the disk: lines are flushed one by one, and the mp4 grows in fragments that a
player can read even when the process is killed (but for some 2 s still in the encoder); closing it makes it ordinary.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from avssl_ros.overlay import draw
from avssl_ros.scene import Localization
from avssl_ros.timeline import draw_timeline

MAX_WIDTH = 1920  # of overlay.mp4: larger pictures are scaled down, as encoding them takes longer than localizing
CLOCK = Fraction(1, 90000)  # time base of the pictures, MPEG's own: any frame rate fits, and uneven ones too
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
MAX_LINES = 40_000  # kept in memory for the timeline, over an hour at 10 Hz; about 50 MB
MAX_SOUND_JITTER = 0.02  # seconds; a larger difference between stated and expected time is filled or cut


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
        self._size = tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))  # h264 wants even sides
        self._jsonl = self.sources_path.open("w", encoding="utf-8")
        fragments = {"movflags": "hybrid_fragmented+delay_moov"}  # the delay is needed for exact times of the sound
        self._mp4 = av.open(str(self.overlay_path), "w", format="mp4", options=fragments)
        self._pictures = self._mp4.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._pictures.width, self._pictures.height = self._size
        self._pictures.pix_fmt = "yuv420p"
        self._pictures.codec_context.time_base = CLOCK
        # "veryfast" leaves the processor to the localizer, a key frame a second makes the video quick to seek in, and
        # without B-frames the first picture is shown at time 0 rather than late against the sound.
        self._pictures.options = {"preset": "veryfast", "crf": "22", "g": str(max(1, round(fps))), "bf": "0"}
        self._last_pts = -1
        self._sound_rate = sample_rate
        self._sound_end = 0  # samples written
        if sample_rate:
            rate = sample_rate if sample_rate in AAC_RATES else 48000
            self._sound = self._mp4.add_stream("aac", rate=rate, layout="mono")

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def sources_path(self) -> Path:
        return self.folder / "sources.jsonl"

    @property
    def overlay_path(self) -> Path:
        return self.folder / "overlay.mp4"

    @property
    def timeline_path(self) -> Path:
        return self.folder / "timeline.png"

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
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        pts = round(time / CLOCK)
        if pts <= self._last_pts:  # a picture of the past cannot be shown any more
            return
        self._last_pts = pts
        frame = av.VideoFrame.from_ndarray(draw(image, scene, self._projection, self._fov_deg), format="rgb24")
        frame.pts, frame.time_base = pts, CLOCK
        self._mp4.mux(self._pictures.encode(frame))

    def add_sound(self, samples: np.ndarray, time: float) -> None:
        """Append mono sound (n,) in [-1, 1] that begins at `time` seconds; where sound is missing there is silence."""
        start = round(time * self._sound_rate)
        if abs(start - self._sound_end) > MAX_SOUND_JITTER * self._sound_rate:
            samples = samples[max(0, self._sound_end - start) :]
            while start > self._sound_end:
                self._encode_sound(np.zeros(min(start - self._sound_end, self._sound_rate), np.float32))
        if samples.size:
            self._encode_sound(samples)

    def close(self) -> None:
        """Finish overlay.mp4 and draw timeline.png."""
        if self._jsonl.closed:
            return
        self._jsonl.close()
        try:
            for stream in self._mp4.streams:
                self._mp4.mux(stream.encode())
        finally:
            self._mp4.close()
        draw_timeline(self.lines, self.timeline_path, self._title)

    def _encode_sound(self, samples: np.ndarray) -> None:
        channels = np.ascontiguousarray(samples[None], np.float32)  # (1, n)
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout="mono")
        frame.sample_rate = self._sound_rate
        frame.pts, frame.time_base = self._sound_end, Fraction(1, self._sound_rate)
        self._sound_end += len(samples)
        self._mp4.mux(self._sound.encode(frame))
