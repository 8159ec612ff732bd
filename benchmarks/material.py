"""Material that neither our training nor the label bridge's classifiers saw: real video, and cut-outs of another kind.

Collections as of training/mixing.py, for scenes of training/scenes.py; panoramas and background noise are those of the
test split. Still composites, since no 360 degree recording with known truth is at hand:

RealVideo   frames of real clips (../shared/data/clips) with the sound of the same clip at the same moment: what is
            heard is what is seen, recorded together. Three frames to a scene, as large as an ordinary camera saw them
            (HEIGHTS), and in them the object is as small as it was there. Each of the 41 clips sounds equally often;
            25 are of people who speak, the others of ten concepts.
CutOuts     photographs of Debian's tuxpaint-stamps-default, cut out by hand, with its own recordings: animals,
            instruments, vehicles. Test material only (training/data.py).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from avssl_ros import features
from avssl_ros.audio_input import read_audio
from training.clip_collection import QUIET_DB, TRIES
from training.clips import decode
from training.corpus import STAMPS, STAMPS_FOLDER, CorpusConfig, debian_folder, labels_of, read_picture, stamps
from training.data import BACKGROUND
from training.mixing import SECONDS, Collection

WIDEST = 4 / 3  # a frame is cropped to this, so that its neighbour stays visible
VISIBLE, HEIGHTS, SEPARATION = 3, (42.0, 54.0), 80.0  # degrees: 56 to 72 across, the field of view of a usual lens


class _Borrowed:
    """Panoramas and background noise of another collection."""

    def __init__(self, base: Collection):
        self.base, self.class_of, self.panoramas = base, base.class_of, base.panoramas
        self.photos, self.sounds = defaultdict(list), defaultdict(list)
        self.sounds[BACKGROUND] = base.sounds[BACKGROUND]

    def place(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.base.place(rng)

    def shows_people(self, item) -> bool:
        return False  # one thing alone is in each of these


class CutOuts(_Borrowed):
    """Photographs (RGBA) and recordings of the stamps. Raises training.corpus.Missing where they cannot be had."""

    def __init__(self, base: Collection, downloads: Path):
        super().__init__(base)
        found = stamps(debian_folder(STAMPS, STAMPS_FOLDER, CorpusConfig(downloads, downloads=downloads)))
        for material in found:
            if material.item.concept in self.class_of:
                (self.photos if material.item.kind == "photo" else self.sounds)[material.item.concept].append(material)

    def scene(self, key: tuple[int, ...]) -> CutOuts:
        return self

    def photo(self, material) -> np.ndarray:
        """RGB or RGBA uint8 (H, W, 3 or 4)."""
        picture, alpha = read_picture(material.path)
        return picture if alpha is None else np.dstack([picture, (alpha * 255).astype(np.uint8)])

    def sound(self, material) -> np.ndarray:
        """float32 (n,) at the model's rate."""
        if material in self.base.sounds[BACKGROUND]:
            return self.base.sound(material)
        return features.as_mono(*read_audio(material.path))


class RealVideo(_Borrowed):
    """Clips of one known concept each; a scene has one clip, and one moment of it, for each concept.

    Args:
        folder: with index.csv and the clips. Raises FileNotFoundError where it is missing.
    """

    def __init__(self, base: Collection, folder: Path):
        super().__init__(base)
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["projection"] == "perspective"]
        self.clips = defaultdict(list)
        for row in rows:
            concept = labels_of(row["what_sounds"])
            if concept in self.class_of:  # of none, or of several, the object in the picture would not be clear
                self.clips[concept].append((folder / row["file"], float(row["seconds"])))
        for concept, clips in self.clips.items():
            self.photos[concept] = self.sounds[concept] = clips

    def scene(self, key: tuple[int, ...]) -> _Moment:
        return _Moment(self, key)


class _Moment(_Borrowed):
    """What one scene takes of RealVideo."""

    def __init__(self, video: RealVideo, key: tuple[int, ...]):
        super().__init__(video.base)
        self._rng, self._windows = np.random.default_rng((*key, 1)), {}
        for concept, clips in sorted(video.clips.items()):
            self.photos[concept] = self.sounds[concept] = [clips[self._rng.integers(len(clips))]]

    def photo(self, clip) -> np.ndarray:
        """RGB uint8 (H, W, 3): the middle of the frame at the middle of the moment."""
        frame = self._window(clip)[0]
        width = min(frame.shape[1], round(WIDEST * frame.shape[0]))
        left = (frame.shape[1] - width) // 2
        return frame[:, left:left + width]

    def sound(self, clip) -> np.ndarray:
        """float32 (n,) at the model's rate."""
        return self.base.sound(clip) if clip in self.base.sounds[BACKGROUND] else self._window(clip)[1]

    def _window(self, clip) -> tuple[np.ndarray, np.ndarray]:
        if clip not in self._windows:
            path, seconds = clip
            for _ in range(TRIES):
                start = self._rng.uniform(0, max(seconds - SECONDS, 0))
                frames, sound = decode(path, start, SECONDS, 1)
                if features.loudest_block_db(sound) > QUIET_DB:
                    break
            self._windows[clip] = frames[0], sound
        return self._windows[clip]
