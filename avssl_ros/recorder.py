"""Keeps what camera and microphone deliver: mp4 segments in a folder that never grows beyond a limit.

    with Recorder("place", limit_bytes=20 * GB) as recorder:
        recorder.add_frame(image, time)                  # seconds of the capture clock
        recorder.add_sound(samples, sample_rate, time)

A segment is an ordinary video with sound, named by the capture time of its first picture (UTC), so a folder of them is
something that `avssl localize`, training/collect.py and any player take. A killed process leaves all segments readable.
"""

from __future__ import annotations

import re
import shutil
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from avssl_ros.audio_input import AudioSource
from avssl_ros.mp4 import Mp4Writer

GB = 10**9
SEGMENT_SECONDS = 60.0
SPARE_BYTES = GB // 5  # of the disk, which are left to others
NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z\.mp4")
PRESET, QUALITY = "superfast", 25  # of x264: the robot has other work, and the models see 352 pixels of a view
LATE_SECONDS = 2.0  # that sound may come after its pictures, or before them


@dataclass
class _Segment:
    path: Path
    writer: Mp4Writer
    size: tuple[int, int]
    sample_rate: int
    start: float
    end: float  # no sound from here on belongs to it
    heard: int = 0  # number of the newest block of sound that it was given


class Recorder:
    """Writes segments into `folder`, which is created. Used by one thread at a time.

    Args:
        folder: where to, "~" is the home; segments that are there count towards the limit, oldest deleted first, other
            files are left.
        segment_seconds: length of a segment, at least 1.
        limit_bytes: of all segments together. Of the disk, SPARE_BYTES are left free as well.
        fps: about how many pictures a second will come.
        sample_rate: Hz of the sound, while none has come yet.

    Raises:
        ValueError: a limit or length that makes no sense.
        OSError: the folder cannot be written, or the disk is full though no old segment is left.
    """

    def __init__(self, folder: str | Path, segment_seconds: float = SEGMENT_SECONDS, limit_bytes: float = 10 * GB,
                 fps: float = 10.0, sample_rate: int = 48000):
        if not (segment_seconds >= 1 and limit_bytes > 0 and fps > 0):
            raise ValueError(f"segments need at least 1 s, a limit and a rate above 0; got {segment_seconds} s, "
                             f"{limit_bytes} bytes, {fps} pictures a second")
        self.folder = Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._seconds, self._limit, self._fps, self._rate = segment_seconds, limit_bytes, fps, sample_rate
        self._current: _Segment | None = None
        self._before: _Segment | None = None  # waits for the sound of its end
        self._last_frame = -np.inf
        self._reach = LATE_SECONDS + 1 / fps  # after a picture, until which sound still has pictures
        self._recent: deque[tuple[int, float, np.ndarray]] = deque()  # number, time and samples of the newest sound
        self._blocks = 0  # of sound that came
        self.written = 0  # segments
        self.deleted = 0

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def segments(self) -> list[Path]:
        """Oldest first."""
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def add_frame(self, image: np.ndarray, time: float) -> None:
        """A picture, RGB uint8 (H, W, 3), captured at `time`; another size, or a jump in time, begins a segment."""
        size, now = (image.shape[1], image.shape[0]), self._current
        jumped = not 0 <= time - self._last_frame <= self._seconds
        if now is None or jumped or size != now.size or self._rate != now.sample_rate or (
                time - now.start >= self._seconds):
            now = self._begin(size, time)
        self._last_frame = time
        now.writer.add_frame(image, time - now.start)
        self._give_sound(now, time + self._reach)

    def add_sound(self, samples: np.ndarray, sample_rate: int, time: float) -> None:
        """Mono float32 (n,) in [-1, 1], the first of it captured at `time`; without pictures it is not kept."""
        if int(sample_rate) != self._rate:
            self._rate = int(sample_rate)
            self._recent.clear()
        self._blocks += 1
        self._recent.append((self._blocks, time, samples))
        while sum(len(block) for _, _, block in self._recent) - len(self._recent[0][2]) >= LATE_SECONDS * self._rate:
            self._recent.popleft()
        if self._before is not None:
            self._give_sound(self._before, self._before.end)
            if time + len(samples) / self._rate >= self._before.end:
                self._finish_before()
        if self._current is not None:
            self._give_sound(self._current, self._last_frame + self._reach)

    def close(self) -> None:
        """Finish all files."""
        self._finish_before()
        self._before, self._current = self._current, None
        self._finish_before()

    def _begin(self, size: tuple[int, int], time: float) -> _Segment:
        self._finish_before()
        if self._current is not None:
            self._before = self._current
            self._before.end = min(self._before.end, self._last_frame + self._reach,
                                   time if time > self._before.start else np.inf)  # fmt: skip
        self._make_room()
        path = self._new_path(time)
        writer = Mp4Writer(path, *size, self._fps, self._rate, PRESET, QUALITY)
        self._current = _Segment(path, writer, size, self._rate, time, time + self._seconds)
        self.written += 1
        return self._current

    def _give_sound(self, segment: _Segment, latest: float) -> None:
        """What is kept of the sound, begins before `latest` and belongs to the segment; each block once."""
        if segment.sample_rate != self._rate:
            return
        for number, time, samples in self._recent:
            if number <= segment.heard or time >= latest:
                continue
            segment.heard = number
            first = max(0, int(np.ceil((segment.start - time) * self._rate)))
            last = max(0, int((segment.end - time) * self._rate))
            if first < min(last, len(samples)):
                segment.writer.add_sound(samples[first:last], time + first / self._rate - segment.start)

    def _new_path(self, time: float) -> Path:
        """The name of that time, or of the next millisecond that none has: a clock may have been set back."""
        moment = datetime.fromtimestamp(max(time, 0.0), timezone.utc)
        while (path := self.folder / f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z.mp4").exists():
            moment += timedelta(milliseconds=1)
        return path

    def _finish_before(self) -> None:
        if self._before is not None:
            before, self._before = self._before, None
            before.writer.close()

    def _make_room(self) -> None:
        """Delete the oldest segments until one more of usual size fits; what is still written is kept."""
        kept = {segment.path for segment in (self._before, self._current) if segment is not None}
        sizes = {path: path.stat().st_size for path in self.segments()}
        usual = max(sizes.values(), default=0)
        for path in [path for path in sizes if path not in kept]:
            fits = sum(sizes.values()) + usual <= self._limit
            if fits and shutil.disk_usage(self.folder).free > SPARE_BYTES + usual:
                return
            path.unlink()
            del sizes[path]
            self.deleted += 1
        if shutil.disk_usage(self.folder).free < SPARE_BYTES:
            raise OSError(f"less than {SPARE_BYTES / 1e6:.0f} MB are free for {self.folder} and no old segment is left "
                          "to delete: free some space, or record onto another disk")


class SoundTap:
    """Reads on in the buffer of a sound source: each sample once."""

    def __init__(self, source: AudioSource):
        self._source = source
        self._end: float | None = None  # capture time of the newest sample that was read

    def read(self) -> tuple[np.ndarray, int, float] | None:
        """What is new: samples (n,), their rate, and the capture time of the first; None where nothing is."""
        buffer = self._source.buffer
        if (latest := buffer.latest) is None or latest == self._end:
            return None
        seconds = latest - self._end if self._end is not None and 0 < latest - self._end else 0.1
        samples = buffer.read(latest, seconds)
        self._end = latest
        if not samples.size:
            return None
        return samples, buffer.sample_rate, latest - (len(samples) - 1) / buffer.sample_rate
