"""What a robot recorded in its own place (`avssl record`, the node's parameter `record`, a ROS 2 bag) as material.

    recording = read_recording("place")       # a folder of mp4 segments, one video, or a bag
    recording.moments                          # one a second: what was heard in the 2 s before it, and which picture
    recording.picture(number)                  # RGB uint8 (H, W, 3)

Nothing in it is labelled. A picture is kept only where it differs from the one before, as JPEG: an hour fits in memory.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from avssl_ros import features
from avssl_ros.audio_input import read_audio
from avssl_ros.recorder import Recorder
from avssl_ros.video_input import VideoFile
from training.mixing import SECONDS

STEP_SECONDS = 1.0  # between two moments
ALIKE = 1.5  # grey levels of 255 by which thumbnails of one and the same picture differ at most, as codecs change them
THUMBNAIL = (64, 32)
JPEG_QUALITY = 95
WIDEST = 1280  # pixels of a picture: finer ones show the models nothing more
VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi")


@dataclass(frozen=True)
class Moment:
    """`time` in seconds from the beginning, the number of the picture then, and the sound of the SECONDS before it,
    float32 at features.SAMPLE_RATE."""

    time: float
    picture: int
    sound: np.ndarray


@dataclass
class PlaceRecording:
    """See the top of the file. `unreadable` says what is wrong with files of which not everything could be read."""

    moments: list[Moment] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0
    _pictures: list[bytes] = field(default_factory=list)
    _thumbnail: np.ndarray | None = None  # of the last picture

    def __len__(self) -> int:
        return len(self._pictures)

    def picture(self, number: int) -> np.ndarray:
        """RGB uint8 (H, W, 3)."""
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(self._pictures[number], np.uint8), 1), cv2.COLOR_BGR2RGB)

    def between(self, start: float, end: float) -> list[Moment]:
        """The moments from `start` on and before `end`, as shares of the recording."""
        return [moment for moment in self.moments if start * self.seconds <= moment.time < end * self.seconds]

    def add(self, path: Path) -> None:
        """One video, after those before it. What of it can be read is taken."""
        try:
            sound, video = features.as_mono(*read_audio(path)), VideoFile(path)
        except ValueError as error:
            self.unreadable.append(str(error))
            return
        if video.projection != "equirectangular":
            self.unreadable.append(f"{path} is no 360 degree video ({video.projection_reason})")
            return
        due, end = SECONDS, 0.0
        for time, image in video:
            end = time
            thumbnail = cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
            if self._thumbnail is None or np.abs(thumbnail - self._thumbnail).mean() > ALIKE:
                self._thumbnail = thumbnail
                self._keep(image)
            if time < due or time * features.SAMPLE_RATE > len(sound) + features.HOP:
                continue
            due = max(due, time - STEP_SECONDS) + STEP_SECONDS
            last = int(time * features.SAMPLE_RATE)
            window = sound[last - int(SECONDS * features.SAMPLE_RATE) : last]
            self.moments.append(Moment(self.seconds + time, len(self._pictures) - 1, window))
        self.unreadable += [video.error] if video.error else []
        self.seconds += end + 1 / video.fps

    def _keep(self, image: np.ndarray) -> None:
        if image.shape[1] > WIDEST:
            image = cv2.resize(image, (WIDEST, WIDEST // 2), interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        self._pictures.append(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes())


def read_recording(path: Path, image_topic: str | None = None, sound_topic: str | None = None) -> PlaceRecording:
    """Reads a folder of videos, a video, or a ROS 2 bag (`avssl record --bag` makes the same segments of it).

    Raises:
        FileNotFoundError: there is nothing of that name. ValueError: nothing in it is a video with sound.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no recording at {path}: make one with `avssl record {path}` or the node's `record`")
    if path.suffix == ".mcap" or (path / "metadata.yaml").exists():
        with tempfile.TemporaryDirectory() as folder:
            _segments_of_bag(path, Path(folder), image_topic, sound_topic)
            return read_recording(Path(folder))
    recording = PlaceRecording()
    videos = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS)
    for video in videos:
        recording.add(video)
    if not recording.moments:
        why = "; ".join(recording.unreadable) or f"wanted are files of the kinds {', '.join(VIDEOS)}, or a ROS 2 bag"
        raise ValueError(f"{path} holds no video with sound of {SECONDS:g} s or more: {why}")
    return recording


def _segments_of_bag(path: Path, folder: Path, image_topic: str | None, sound_topic: str | None) -> None:
    from avssl_ros.ros.bag import Bag  # needs rclpy and rosbags, which a folder of videos does not

    bag = Bag(path, image_topic, sound_topic)
    try:
        with Recorder(folder, sample_rate=bag.sample_rate) as recorder:
            bag.convert(recorder)
    finally:
        bag.close()
