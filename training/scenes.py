"""Generated 360 degree scenes with exact truth, for calibration (validation items) and the benchmark (test items).

Composited: photographs with feathered edges set tangent into a real panorama, with real recordings mixed at random
levels over a real background. Scene i is a function of (seed, i) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from avssl_ros import features
from training.clip_collection import ClipsConfig, open_collection
from training.data import BACKGROUND, PERSON, Item, read_concepts
from training.mixing import (
    ATTEMPTS,
    SECONDS,
    Collection,
    at_level,
    excerpt,
    fan,
    feathered_alpha,
    hum,
    paste_on_sphere,
    pink_noise,
    whole_scene,
)

NEGATIVES = ("silence", "white noise", "pink noise", "hum", "fan", "recorded background", "offscreen sound")
MASK_SHAPE = (128, 256)  # of the areas of objects, an equirectangular grid
SEPARATION = 45.0  # degrees, smallest azimuth between two objects
HEIGHTS = 25.0, 45.0  # degrees that pictures span vertically, from .. to
PEOPLE = frozenset(c.name for c in read_concepts() if PERSON in (c.name, *c.made_by))  # concepts that people make


@dataclass(frozen=True)
class PlacedObject:
    """One object in the panorama.

    Attributes:
        azimuth, elevation: of its picture's centre, radians. height: the angle it spans vertically.
        mask: (MASK_SHAPE) bool, what its picture covers of the sphere.
        item: what of the collection its picture is; None where it is of none.
    """

    concept: str
    azimuth: float
    elevation: float
    height: float
    sounds: bool
    mask: np.ndarray
    item: Item | None = None


@dataclass(frozen=True)
class Scene:
    """image RGB uint8 (640, 1280, 3), sound float32 (n,) at features.SAMPLE_RATE, truth, and what sounds offscreen."""

    image: np.ndarray
    sound: np.ndarray
    objects: tuple[PlacedObject, ...]
    offscreen: str | None = None

    @property
    def sounding(self) -> list[PlacedObject]:
        return [placed for placed in self.objects if placed.sounds]


@dataclass(frozen=True)
class Sounding:
    """Who sounds when: index of the object (None: not in view), concept, from and to in seconds."""

    placed: int | None
    concept: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A still picture and a sound that changes: image, sound and objects as of a Scene, and who sounds when."""

    image: np.ndarray
    sound: np.ndarray
    objects: tuple[PlacedObject, ...]
    soundings: tuple[Sounding, ...]


# What a Timeline holds: object (or what is not in view) from .. to seconds. One thing alone, the next after silence, a
# third in its wake, two at once, and something out of view.
SCHEDULE = ((0, 1.0, 4.0), (1, 5.0, 8.0), (2, 8.0, 11.0), (0, 9.5, 12.0), (None, 13.0, 16.0))
TIMELINE_SECONDS = 17.0


class SceneGenerator:
    """Scenes with `visible` objects of different concepts, of which some sound.

    Args:
        collection: items of one split.
        seed: of all scenes.
        visible: objects in each scene.
        least_photos, least_sounds: items a concept needs, so that no figure hangs on one picture.
        heights, separation: degrees, see HEIGHTS and SEPARATION.
        by_recordings: a scene's sounding objects are drawn by the number of their concept's recordings, not all alike.
    """

    def __init__(
        self, collection: Collection, seed: int, visible: int = 4, least_photos: int = 3, least_sounds: int = 2,
        heights: tuple[float, float] = HEIGHTS, separation: float = SEPARATION, by_recordings: bool = False,
    ):
        self.collection, self.seed, self.visible = collection, seed, visible
        self.heights, self.separation = np.radians(heights), np.radians(separation)
        self.lookable = [n for n in collection.class_of if len(collection.photos[n]) >= least_photos]
        self.audible = [n for n in self.lookable if len(collection.sounds[n]) >= least_sounds]
        recordings = np.array([len(collection.sounds[name]) for name in self.audible], float)
        self.share = recordings / recordings.sum() if by_recordings else None
        if len(self.audible) < 2 or len(self.lookable) < visible + 1 or not collection.panoramas:
            raise ValueError(
                f"too few items for scenes of {visible} objects: "
                f"{len(self.lookable)} concepts with {least_photos} photos, "
                f"{len(self.audible)} of them with {least_sounds} recordings, {len(collection.panoramas)} panoramas"
            )

    def scene(self, index: int, sounding: int = 1, twin: bool = False) -> Scene:
        """A scene in which `sounding` of the visible objects sound; with `twin` a silent one is of the first's concept.

        One microphone cannot tell the twins apart: at best every other first answer is right.
        """
        return whole_scene(self, index, SceneGenerator._scene, sounding, twin)

    def _scene(self, rng, sounding: int, twin: bool) -> Scene:
        heard = list(rng.choice(self.audible, sounding, replace=False, p=self.share))
        others = [name for name in self.lookable if name not in heard]
        names = heard + list(rng.choice(others, self.visible - sounding, replace=False))
        if twin:
            names[-1] = names[0]
        image, objects = self._place(rng, names, sounding)
        mixture = sum(at_level(self._recording(rng, name), rng.uniform(-30, -15)) for name in heard)
        return Scene(image, _clip(mixture + self._background(rng, rng.uniform(-65, -45))), objects)

    def negative(self, index: int, kind: str) -> Scene:
        """A scene in which nothing that is in view sounds; `kind` is one of NEGATIVES."""
        return whole_scene(self, index, SceneGenerator._negative, kind)

    def _negative(self, rng, kind: str) -> Scene:
        names = list(rng.choice(self.lookable, self.visible, replace=False))
        if kind == "offscreen sound":
            name, names = self._out_of_view(rng, names)
            image, objects = self._place(rng, names, 0, [name])
            sound = at_level(self._recording(rng, name), rng.uniform(-30, -15)) + self._background(rng, -60)
            return Scene(image, _clip(sound), objects, offscreen=str(name))
        image, objects = self._place(rng, names, 0)
        return Scene(image, _clip(self._negative_sound(rng, kind)), objects)

    def _out_of_view(self, rng, names: list[str]) -> tuple[str, list[str]]:
        """What sounds out of view of `names`, and what is in view.

        What somebody in view may have said is not out of view. Where so nothing is left, as happens with few concepts,
        others are in view, and fewer than `visible` if need be.
        """
        shown = set(names) | (set() if PEOPLE.isdisjoint(names) else PEOPLE)
        hidden = [name for name in self.audible if name not in shown]
        if hidden:
            return rng.choice(hidden), names
        name = rng.choice(self.audible)
        others = [other for other in self.lookable if other != name and not {other, name} <= PEOPLE]
        return name, list(rng.choice(others, min(self.visible, len(others)), replace=False))

    def pair(self, index: int) -> tuple[Scene, Scene]:
        """Two scenes of one picture: in the first its first object sounds, in the second its second."""
        return whole_scene(self, index, SceneGenerator._pair)

    def _pair(self, rng) -> tuple[Scene, Scene]:
        heard = list(rng.choice(self.audible, 2, replace=False))
        others = [name for name in self.lookable if name not in heard]
        names = heard + list(rng.choice(others, self.visible - 2, replace=False))
        image, objects = self._place(rng, names, 0, heard)
        background, scenes = self._background(rng, rng.uniform(-65, -45)), []
        for number, name in enumerate(heard):
            sounding = tuple(replace(placed, sounds=index == number) for index, placed in enumerate(objects))
            sound = at_level(self._recording(rng, name), rng.uniform(-30, -15)) + background
            scenes.append(Scene(image, _clip(sound), sounding))
        return scenes[0], scenes[1]

    @property
    def has_timelines(self) -> bool:
        """Whether there are as many concepts to hear as a timeline needs."""
        return len(self.audible) >= len({placed for placed, _, _ in SCHEDULE})

    def timeline(self, index: int, background_db: tuple[float, float] = (-65.0, -50.0)) -> Timeline:
        """A scene in which objects begin and fall silent as SCHEDULE says, before a background from .. to some dB.

        Raises ValueError where `has_timelines` is false.
        """
        if not self.has_timelines:
            raise ValueError(f"a timeline needs 4 concepts with recordings, got {len(self.audible)}")
        return whole_scene(self, index, SceneGenerator._timeline, background_db)

    def _timeline(self, rng, background_db: tuple[float, float]) -> Timeline:
        heard = [str(name) for name in rng.choice(self.audible, 4, replace=False)]
        others = [name for name in self.lookable if name not in heard]
        names = heard[:3] + list(rng.choice(others, max(self.visible - 3, 0), replace=False))
        image, objects = self._place(rng, names, 3, heard)
        length = int(TIMELINE_SECONDS * features.SAMPLE_RATE)
        sound = np.resize(self._background(rng, rng.uniform(*background_db)), length)
        soundings = []
        for placed, start, end in SCHEDULE:
            name = heard[3 if placed is None else placed]
            choices = self.collection.sounds[name]
            part = self.collection.sound(choices[rng.integers(len(choices))])
            part = at_level(np.resize(excerpt(rng, part, min(end - start, len(part) / features.SAMPLE_RATE)),
                                      int((end - start) * features.SAMPLE_RATE)), rng.uniform(-26, -18))  # fmt: skip
            first = int(start * features.SAMPLE_RATE)
            sound[first:first + len(part)] += part
            soundings.append(Sounding(placed, name, start, end))
        return Timeline(image, _clip(sound), objects, tuple(soundings))

    def _negative_sound(self, rng, kind: str) -> np.ndarray:
        length = int(SECONDS * features.SAMPLE_RATE)
        level = rng.uniform(-45, -20)
        if kind == "silence":
            return np.zeros(length, np.float32)
        if kind == "white noise":
            return at_level(rng.standard_normal(length).astype(np.float32), level)
        if kind == "pink noise":
            return at_level(pink_noise(rng, length), level)
        if kind == "hum":
            return at_level(hum(rng, length, rng.choice([50.0, 60.0])), level)
        if kind == "fan":
            return at_level(fan(rng, length), level)
        if kind == "recorded background":
            return self._background(rng, level)
        raise ValueError(f"kind must be one of {NEGATIVES}, got {kind!r}")

    def _recording(self, rng, name: str) -> np.ndarray:
        choices = self.collection.sounds[name]
        return excerpt(rng, self.collection.sound(choices[rng.integers(len(choices))]))

    def _background(self, rng, level_db: float) -> np.ndarray:
        if not self.collection.sounds[BACKGROUND]:
            return at_level(pink_noise(rng, int(SECONDS * features.SAMPLE_RATE)), level_db)
        return at_level(self._recording(rng, BACKGROUND), level_db)

    def _panorama(self, rng, heard: Sequence[str]) -> np.ndarray:
        """A panorama; one without people where they are heard: its own would be as right an answer as the truth's."""
        for _ in range(ATTEMPTS):
            panorama, people = self.collection.place(rng)
            if PEOPLE.isdisjoint(heard) or not people.any():
                break
        return panorama

    def _photos(self, name: str, heard: Sequence[str]) -> list:
        """What may show a concept: where people are heard, no players or riders, who would be as right an answer."""
        choices = self.collection.photos[name]
        if name in PEOPLE or PEOPLE.isdisjoint(heard):
            return choices
        return [item for item in choices if not self.collection.shows_people(item)] or choices

    def _place(
        self, rng, names: list[str], sounding: int, heard: Sequence[str] | None = None
    ) -> tuple[np.ndarray, tuple[PlacedObject, ...]]:
        """The picture and its PlacedObjects of which the first `sounding` sound; `heard` is everything that does."""
        heard = names[:sounding] if heard is None else heard
        panorama = self._panorama(rng, heard)
        panorama = np.roll(panorama, rng.integers(panorama.shape[1]), axis=1)
        objects = []
        for index, (name, azimuth) in enumerate(zip(names, self._azimuths(rng, len(names)))):
            choices = self._photos(name, heard)
            item = choices[rng.integers(len(choices))]
            photo = self.collection.photo(item)
            elevation, height = np.radians(rng.uniform(-15, 15)), rng.uniform(*self.heights)
            photo, alpha = (photo[..., :3], photo[..., 3] / np.float32(255)) if photo.shape[2] == 4 else (
                photo, feathered_alpha(rng, *photo.shape[:2]))
            opacity = paste_on_sphere(panorama, photo, alpha, azimuth, elevation, height)
            mask = cv2.resize(opacity, MASK_SHAPE[::-1], interpolation=cv2.INTER_AREA) > 0.5
            objects.append(PlacedObject(str(name), float(azimuth), float(elevation), float(height), index < sounding,
                                        mask, item))
        return panorama, tuple(objects)

    def _azimuths(self, rng, count: int) -> np.ndarray:
        """Random azimuths at least `separation` apart: the free rest of the circle is shared out at random."""
        gaps = rng.dirichlet(np.ones(count)) * (2 * np.pi - count * self.separation) + self.separation
        return rng.permutation(rng.uniform(-np.pi, np.pi) + np.cumsum(gaps))


def open_scenes(data: Path | None, split: str, seed: int, clips: ClipsConfig | None = None, visible: int = 4,
                least_photos: int = 3, least_sounds: int = 2) -> SceneGenerator:
    """Scenes of one split, by default as the benchmarks try them; close the generator's collection after use.

    Arguments as of open_collection (training/clip_collection.py), whose errors it raises, and of SceneGenerator.
    """
    collection = open_collection(data, clips or ClipsConfig(), split, read_concepts())
    return SceneGenerator(collection, seed, visible, least_photos, least_sounds)


def _clip(sound: np.ndarray) -> np.ndarray:
    return np.clip(sound, -1, 1).astype(np.float32)
