"""Scenes mixed from photographs, recordings and panoramas: one implementation for training and for the benchmark.

A training scene is what the robot meets at run time: four perspective views of one place, some objects in them, and
several sounds of that place, each with exact ownership of every image patch and every time-frequency patch. What is
seen and heard comes from a collection: photographs and recordings (`Collection`) or video clips
(training/clip_collection.py).
"""

from __future__ import annotations

import copy
import os
import secrets
import warnings
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import soxr
from scipy.signal import fftconvolve

from avssl_ros import features
from avssl_ros.audio_input import existing_file, read_audio
from avssl_ros.geometry import ViewLayout, cut_views, direction_to_pixel, direction_to_vector, pixel_to_direction
from training.cache import cache_key
from training.data import BACKGROUND as BACKGROUND_CONCEPT
from training.data import PERSON, Concept, Item, head_of, people_mask, read_people
from training.losses import BACKGROUND, IGNORE
from training.pack import DamagedClip

SIZE, STRIDE = 224, 16  # of a view, pixels
SECONDS = 2.0  # of sound in a scene
PASTED = 3  # objects in a view at most
SHOW_PEOPLE = frozenset(("person", "child", "crowd"))  # concepts whose photographs show people and nothing else
FAINT, FILLED = 64, 0.8  # of 255: how bodies are marked; the share of a photograph from which on people fill it
SURE = 128  # of 255: score from which on somebody found there is taken for a person
ATTEMPTS = 16  # scenes in a row that damaged clips may spoil
MOST_VIDEOS = 0.5  # share of what is drawn that single videos without a known label have beside concepts


class Collection:
    """Photographs, recordings and panoramas of one split, by concept. Recordings are decoded once and kept as int16."""

    videos: frozenset[str] = frozenset()  # of its classes those that are single videos: see ClipCollection

    def __init__(self, items: list[Item], root: Path, concepts: list[Concept], cache: Path | None = None,
                 share: float = 1.0):
        """`share` of the photographs and recordings are used, chosen by their names; all are decoded into `cache`."""
        if not 0.0 < share <= 1.0:
            raise ValueError(f"the share of the data must be in (0, 1], got {share}")
        self.root = Path(root)
        self.class_of = {concept.name: index for index, concept in enumerate(concepts)}
        self.photos, self.sounds = defaultdict(list), defaultdict(list)
        for item in items:
            if item.kind in ("photo", "sound") and zlib.crc32(item.file.encode()) < share * 2**32:
                getattr(self, item.kind + "s")[item.concept].append(item)
        self.panoramas = [item for item in items if item.kind == "panorama"]
        self.people = read_people()
        self._place_of: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._decoded = self._decode([item for item in items if item.kind == "sound"], cache)

    def _decode(self, items: list[Item], cache: Path | None) -> dict[str, np.ndarray]:
        names = [item.file for item in items]
        key = _identity(self.root, names) if cache is not None else ""
        stored = _read_decoded(cache, key) if cache is not None else None
        if stored is not None:
            return dict(zip(names, stored))
        decoded = [_to_int16(features.as_mono(*read_audio(self.root / name))) for name in names]
        if cache is not None:
            try:
                _write_decoded(cache, key, decoded)
            except OSError as error:
                warnings.warn(f"the decoded recordings can't be kept in {cache} ({error}): they are decoded anew each "
                              "time. Free some room, or work where the folder can be written.", RuntimeWarning,
                              stacklevel=3)
        return dict(zip(names, decoded))

    def close(self) -> None:
        """Nothing of it is held by others: see ClipCollection."""

    def scene(self, key: tuple[int, ...]) -> Collection:
        """What the scene that `key` stands for takes its items from: this collection, since its items never change."""
        return self

    def place(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One of the panoramas and the people in it, not to be changed: RGB uint8 (H, 2 H, 3) and `people_mask`."""
        item = self.panoramas[rng.integers(len(self.panoramas))]
        if item.file not in self._place_of:
            picture = self.photo(item)
            self._place_of[item.file] = picture, people_mask(self.people.get(item.file, []), *picture.shape[:2])
        return self._place_of[item.file]

    def shows_people(self, item: Item) -> bool:
        """Whether the detector has seen somebody in a photograph or panorama, be it doubtfully."""
        return item.file in self.people

    def heads(self, item: Item, height: int, width: int) -> np.ndarray:
        """uint8 (height, width): the heads of people in a photograph as of `people_mask`, the rest of them faintly.

        Where people fill the picture, what else it shows is before them, and only the heads are marked.
        """
        people = [person for person in self.people.get(item.file, []) if 255 * person.score >= SURE]
        bodies = people_mask([replace(person, score=FAINT / 255) for person in people], height, width)
        if (bodies > 0).mean() > FILLED:
            bodies[:] = 0
        return np.maximum(bodies, people_mask([head_of(person) for person in people], height, width))

    def photo(self, item: Item) -> np.ndarray:
        """RGB uint8 (H, W, 3)."""
        image = cv2.imread(str(self.root / item.file), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(
                f"{self.root / item.file} is missing or not a picture; run training/data.py on this folder"
            )
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def sound(self, item: Item) -> np.ndarray:
        """float32 (n,) at the model's rate."""
        return self._decoded[item.file].astype(np.float32) / 32768.0


def _identity(root: Path, names: list[str]) -> str:
    """A hash of which files these are, and of their sizes and times; errors as of `existing_file`."""
    for name in names:
        existing_file(root / name)
    found = [(root / name).stat() for name in names]
    return cache_key(root=root.resolve(), names=names, sizes=[status.st_size for status in found],
                     times=[status.st_mtime_ns for status in found])


def _read_decoded(cache: Path, key: str) -> list[np.ndarray] | None:
    """Decoded recordings, each int16 (n,), or None where those of `key` are not there, or damaged."""
    try:
        with np.load(cache) as stored:
            return np.split(stored["samples"], stored["offsets"][1:-1]) if str(stored["key"]) == key else None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _write_decoded(cache: Path, key: str, decoded: list[np.ndarray]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(f"{cache.name}.{secrets.token_hex(4)}.partial")  # a name for each of several ranks
    try:
        with open(partial, "wb") as file:
            np.savez(file, key=key, samples=np.concatenate(decoded), offsets=np.cumsum([0, *map(len, decoded)]))
        os.replace(partial, cache)
    finally:
        partial.unlink(missing_ok=True)


def _to_int16(samples: np.ndarray) -> np.ndarray:
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


# ------------------------------------------------------------------------------------------------------------ pictures


def feathered_alpha(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32: a rectangle or ellipse that fades out, so that no sharp frame gives the photo away."""
    y, x = np.abs(np.linspace(-1, 1, height)), np.abs(np.linspace(-1, 1, width))
    power = rng.choice([2.0, 4.0, 12.0])  # ellipse, rounded, nearly rectangular (superellipse)
    radius = (x[None] ** power + y[:, None] ** power) ** (1 / power)
    return np.clip((1.0 - radius) / rng.uniform(0.04, 0.3), 0, 1).astype(np.float32)


def jitter(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """Random flip, crop, brightness, contrast and colour balance of an RGB uint8 picture; further channels stay."""
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    height, width = photo.shape[:2]
    keep = rng.uniform(0.75, 1.0, 2)
    h, w = max(16, int(height * keep[0])), max(16, int(width * keep[1]))
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    photo = photo[top : top + h, left : left + w]
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    lookup = np.clip((np.arange(256)[:, None] - 128) * rng.uniform(0.7, 1.2) + 128, 0, 255) * gain
    lookup = np.clip(lookup, 0, 255).astype(np.uint8).reshape(256, 1, 3)
    return np.dstack([cv2.LUT(np.ascontiguousarray(photo[..., :3]), lookup), photo[..., 3:]])


def paste(view: np.ndarray, coverage: np.ndarray, photo: np.ndarray, alpha: np.ndarray, x: int, y: int) -> None:
    """Blends a photo into a view with its upper left corner at (x, y), in place; `coverage` (S, S) keeps its alpha."""
    height, width = view.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + photo.shape[1], width), min(y + photo.shape[0], height)
    if x1 <= x0 or y1 <= y0:
        return
    part = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    opacity = alpha[part][..., None]
    view[y0:y1, x0:x1] = (view[y0:y1, x0:x1] * (1 - opacity) + photo[part] * opacity + 0.5).astype(np.uint8)
    coverage[y0:y1, x0:x1] = alpha[part]


def tiles(rng: np.random.Generator, size: int) -> list[tuple[int, int, int, int]]:
    """Two to four rectangles (top, left, bottom, right) that fill a square, in random order: never twice one grid."""
    found = [(0, 0, size, size)]
    for _ in range(rng.integers(1, 4)):
        areas = [(bottom - top) * (right - left) for top, left, bottom, right in found]
        top, left, bottom, right = found.pop(int(np.argmax(areas)))
        part = rng.uniform(0.35, 0.65)
        if (bottom - top) * rng.uniform(0.5, 2.0) > right - left:
            middle = round(top + part * (bottom - top))
            found += [(top, left, middle, right), (middle, left, bottom, right)]
        else:
            middle = round(left + part * (right - left))
            found += [(top, left, bottom, middle), (top, middle, bottom, right)]
    return [found[index] for index in rng.permutation(len(found))]


def covering(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture, resized so that it covers (height, width) with its aspect kept."""
    scale = max(height / photo.shape[0], width / photo.shape[1])
    h, w = min(photo.shape[0], round(height / scale)), min(photo.shape[1], round(width / scale))
    top, left = (photo.shape[0] - h) // 2, (photo.shape[1] - w) // 2
    part = photo[top : top + max(h, 1), left : left + max(w, 1)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def seam(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32 opacity of a tile: a sharp, soft or open seam, another one each time."""
    gap, soft = rng.choice([0.0, rng.uniform(0, 8)]), rng.uniform(0.5, 10)
    y, x = (np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (height, width))
    return np.clip((np.minimum(y[:, None], x[None]) - gap) / soft + 0.5, 0, 1).astype(np.float32)


@lru_cache(maxsize=2)
def _pixel_vectors(rows: int, columns: int) -> np.ndarray:
    """Unit vectors (rows, columns, 3) of the pixels of an equirectangular image."""
    directions = pixel_to_direction(*np.meshgrid(np.arange(columns), np.arange(rows)), columns, rows)
    return direction_to_vector(*directions)


def paste_on_sphere(panorama, photo, alpha, azimuth: float, elevation: float, height: float) -> np.ndarray:
    """Sets a flat picture tangent to the sphere into an equirectangular image, in place (gnomonic projection).

    Args:
        panorama: (H, W, 3) uint8. photo: (h, w, 3) uint8. alpha: (h, w) float32.
        azimuth, elevation: direction of the picture's centre, radians. height: angle it spans vertically, radians.

    Returns:
        The opacity (H, W) float32 with which it covers the panorama.
    """
    rows, columns = panorama.shape[:2]
    scale = photo.shape[0] / (2 * np.tan(height / 2))
    part = _cap(rows, columns, azimuth, elevation, np.arctan(np.hypot(*photo.shape[:2]) / 2 / scale))
    vectors = _pixel_vectors(rows, columns)[part]
    forward = direction_to_vector(azimuth, elevation)
    left = direction_to_vector(azimuth + np.pi / 2, 0.0)
    ahead = vectors @ forward
    inside = ahead > 1e-3
    x = photo.shape[1] / 2 - 0.5 - vectors @ left / np.maximum(ahead, 1e-3) * scale
    y = photo.shape[0] / 2 - 0.5 - vectors @ np.cross(forward, left) / np.maximum(ahead, 1e-3) * scale
    x, y = (np.where(inside, c, -1e4).astype(np.float32) for c in (x, y))
    covered = cv2.remap(alpha, x, y, cv2.INTER_LINEAR, borderValue=0)
    picture = cv2.remap(photo, x, y, cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    panorama[part] = (panorama[part] * (1 - covered[..., None]) + picture * covered[..., None] + 0.5).astype(np.uint8)
    opacity = np.zeros((rows, columns), np.float32)
    opacity[part] = covered
    return opacity


def _cap(rows: int, columns: int, azimuth: float, elevation: float, radius: float):
    """Index (rows, 1), (1, columns) of an equirectangular image's pixels with a spherical cap, also at the seam."""
    x, y = direction_to_pixel(azimuth, elevation, columns, rows)
    tall = int(np.ceil(radius / np.pi * rows)) + 1
    wide = columns
    if abs(elevation) + radius < np.pi / 2:
        wide = 2 * int(np.ceil(np.arcsin(np.sin(radius) / np.cos(elevation)) / (2 * np.pi) * columns)) + 3
    row = np.arange(max(0, int(y) - tall), min(rows, int(y) + tall + 1))
    column = (int(x) + np.arange(min(wide, columns)) - wide // 2) % columns
    return row[:, None], column[None]


# -------------------------------------------------------------------------------------------------------------- sounds


def excerpt(rng: np.random.Generator, samples: np.ndarray, seconds: float = SECONDS) -> np.ndarray:
    """A window of `seconds` that is not the silent part; a shorter recording is set somewhere in it or repeated."""
    length = int(seconds * features.SAMPLE_RATE)
    if len(samples) <= length:
        if len(samples) < 0.6 * length and rng.random() < 0.5:
            gap = np.zeros(int(rng.uniform(0.05, 0.4) * features.SAMPLE_RATE), np.float32)
            samples = np.tile(np.concatenate([samples, gap]), int(np.ceil(length / (len(samples) + len(gap)))))[:length]
        window = np.zeros(length, np.float32)
        start = rng.integers(0, length - len(samples) + 1)
        window[start : start + len(samples)] = samples
        return window
    starts = rng.integers(0, len(samples) - length + 1, 4)
    loudness = [np.square(samples[start : start + length]).mean() for start in starts]
    loud = starts[np.asarray(loudness) >= 0.3 * max(loudness)]
    return samples[loud[0] : loud[0] + length]


def at_level(samples: np.ndarray, level_db: float) -> np.ndarray:
    """Scaled so that the loudest 100 ms have `level_db` (dB of full scale RMS)."""
    return samples * np.float32(10 ** ((level_db - max(features.loudest_block_db(samples), -120.0)) / 20))


def pink_noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """(length,) float32 noise whose power falls by 3 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, length).astype(np.float32)


def hum(rng: np.random.Generator, length: int, fundamental: float, harmonics=(1, 2, 3, 5)) -> np.ndarray:
    """(length,) float32 steady tone of a mains transformer or a motor: harmonics that fall as 1/k, random phases."""
    time = np.arange(length) / features.SAMPLE_RATE
    tones = [np.sin(2 * np.pi * fundamental * k * time + rng.uniform(0, 2 * np.pi)) / k for k in harmonics]
    return sum(tones).astype(np.float32)


def fan(rng: np.random.Generator, length: int) -> np.ndarray:
    """(length,) float32 of a fan: air noise below some kilohertz, and tones at multiples of the blades' passing rate
    that swell and fade with each turn."""
    blades, turns = rng.integers(3, 10), rng.uniform(12.0, 50.0)  # a second
    time = np.arange(length) / features.SAMPLE_RATE
    turn = 2 * np.pi * (turns * time + rng.uniform())
    tones = sum(np.sin(blades * k * turn + rng.uniform(0, 2 * np.pi)) * rng.uniform(0.3, 1.0) / k for k in range(1, 6))
    spectrum = np.fft.rfft(pink_noise(rng, length))
    frequency = np.fft.rfftfreq(length, 1 / features.SAMPLE_RATE)
    air = np.fft.irfft(spectrum / (1 + (frequency / rng.uniform(800.0, 4000.0)) ** 2), length)
    tones *= 1 + rng.uniform(0.0, 0.3) * np.sin(turn)
    return (air / air.std() + rng.uniform(0.1, 1.0) * tones).astype(np.float32)


def reverberant(rng: np.random.Generator, samples: np.ndarray, decay_seconds: float, direct: float) -> np.ndarray:
    """As heard in a room: the direct sound and a tail of exponentially decaying noise (Polack 1988).

    Args:
        samples: (n,). decay_seconds: in which the tail falls by 60 dB. direct: its energy against that of the tail.
    """
    time = np.arange(int(decay_seconds * features.SAMPLE_RATE)) / features.SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3.0 * time / decay_seconds)
    tail /= np.linalg.norm(tail) * np.sqrt(direct)
    tail[0] += 1.0
    return fftconvolve(samples, tail.astype(np.float32))[: len(samples)].astype(np.float32)


def at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Played faster or slower, pitch included: few recordings stand for many voices."""
    return soxr.resample(samples, features.SAMPLE_RATE * speed, features.SAMPLE_RATE, quality="QQ").astype(np.float32)


def masked(rng: np.random.Generator, log_mel: np.ndarray) -> np.ndarray:
    """Half of the spectrograms lose a band and a stretch of time, set to their mean (SpecAugment, Park et al. 2019)."""
    if rng.random() < 0.5:
        return log_mel
    log_mel = log_mel.copy()
    band, time = rng.integers(0, 24), rng.integers(0, 40)
    low, start = rng.integers(0, log_mel.shape[0] - band), rng.integers(0, log_mel.shape[1] - time)
    mean = log_mel.mean()
    log_mel[low : low + band] = mean
    log_mel[:, start : start + time] = mean
    return log_mel


# -------------------------------------------------------------------------------------------------------------- scenes


def whole_scene(maker, index: int, draw, *arguments):
    """`draw(maker, rng, *arguments)` for scene `index` of a maker of scenes, which has a collection and a seed.

    It works on a copy whose collection is that of the scene. A scene that meets a damaged clip, which the collection
    has warned of and counted, is drawn anew. Raises RuntimeError where each of ATTEMPTS scenes met one.
    """
    for attempt in range(ATTEMPTS):
        key = (maker.seed, index, attempt) if attempt else (maker.seed, index)
        scene = copy.copy(maker)
        scene.collection = maker.collection.scene(key)
        try:
            return draw(scene, np.random.default_rng(key), *arguments)
        except DamagedClip as error:
            damaged = error
    raise RuntimeError(f"{ATTEMPTS} scenes in a row met a damaged clip; the last one: {damaged}") from damaged


@dataclass(frozen=True)
class MixConfig:
    """How training scenes are mixed."""

    views: int = 4  # a scene; 0 mixes sounds alone
    sounds: int = 6  # sound mixtures a scene
    concepts: tuple[int, int] = (3, 6)  # visible concepts a scene, from .. to
    photo_px: tuple[float, float] = (36.0, 150.0)  # shorter side of a pasted photo
    full_view: float = 0.15  # share of views filled by one photo
    mosaic: float = 0.15  # share of views that are tiled with photos, in a layout of their own
    no_object: float = 0.1  # share of views without any
    decoy: float = 0.3  # share of views with a pasted picture that shows nothing that sounds
    two_sounds: float = 0.35
    no_sound: float = 0.2  # silence or background noise alone
    reverberant: float = 0.3  # share of sounds heard in a room
    offscreen: float = 0.15  # share of sounds whose object is not in view
    people: float = 1.5  # how many times as often a person is drawn as its photographs alone would have it
    passers_by: float = 0.3  # share of views in which the people of the panorama are told; in others they are nothing
    heads: bool = True  # whether the heads of players and others in photographs of other things are told as people


class SceneMixer:
    """Training scenes by index: scene i is a function of (seed, i) alone, so that a resumed run sees the same ones.

    Where a collection has concepts and single videos of no known label, these are together at most MOST_VIDEOS of what
    is drawn: each is a class of its own, and of a large list they would be nearly all that is ever seen and heard.
    """

    def __init__(self, collection: Collection, config: MixConfig, seed: int):
        self.collection, self.config, self.seed = collection, config, seed
        self.visible = [name for name in collection.class_of if collection.photos[name]]
        self.audible = [name for name in collection.class_of if collection.sounds[name]]
        if not self.audible:
            raise ValueError(f"of {len(collection.class_of)} concepts and clips none has a sound: give more of them")
        # The square root evens out concepts with many photos and those with few without repeating the few too often;
        # concepts that can be heard matter most.
        weight = np.sqrt([min(len(collection.photos[name]), 100) for name in self.visible])
        weight = weight * [1.5 if collection.sounds[name] else 0.5 for name in self.visible]
        weight = weight * [config.people if name == PERSON else 1.0 for name in self.visible]
        video = np.array([name in collection.videos for name in self.visible], bool)
        named, others = weight[~video].sum(), weight[video].sum()
        if 0 < named < others:
            weight[video] *= named / others * MOST_VIDEOS / (1 - MOST_VIDEOS)
        self.probability = weight / max(weight.sum(), 1e-9)
        parts = [[name for name in self.audible if (name in collection.videos) == one] for one in (False, True)]
        self._audible_parts = parts if 0 < len(parts[0]) < len(parts[1]) else None

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One scene.

        Returns:
            views uint8 (V, S, S, 3); view_owner (V, S/16, S/16); view_concept (V, 4); sound float32 (M, 128, T)
            normalised log-mel; sound_owner (M, 8, T/16); sound_concept (M, 2).
            Owners are BACKGROUND or IGNORE where no object owns the patch; concepts are class ids or IGNORE.
            Without views (config.views 0) the keys of the views are absent.

        Raises:
            RuntimeError: where every scene that was tried met a damaged clip.
        """
        return whole_scene(self, index, SceneMixer._mix)

    def _mix(self, rng) -> dict[str, np.ndarray]:
        names = self._draw_concepts(rng)
        backgrounds = self._backgrounds(rng) if self.config.views else []
        views = [self._view(rng, *background, names) for background in backgrounds]
        sounds = [self._sound(rng, names) for _ in range(self.config.sounds)]
        keys = ("views", "view_owner", "view_concept"), ("sound", "sound_owner", "sound_concept")
        return {key: np.stack(parts) for names_, rows in zip(keys, (views, sounds)) if rows
                for key, parts in zip(names_, zip(*rows))}

    def _draw_concepts(self, rng) -> list[str]:
        count = min(rng.integers(self.config.concepts[0], self.config.concepts[1] + 1), len(self.visible))
        # By number: numpy would make an array of all names anew for each scene.
        chosen = rng.choice(len(self.visible), count, replace=False, p=self.probability)
        return [self.visible[index] for index in chosen]

    def _audible(self, rng) -> list[str]:
        """What may sound out of view: all concepts and videos, or one of the two kinds where videos are too many."""
        if self._audible_parts is None:
            return self.audible
        concepts, videos = self._audible_parts
        return videos if rng.random() < MOST_VIDEOS else concepts

    def _backgrounds(self, rng) -> list[tuple[np.ndarray, np.ndarray]]:
        """RGB (S, S, 3) and people (S, S) of each view."""
        count = self.config.views
        place = np.dstack(self.collection.place(rng))
        # A few layouts, whose sampling maps stay cached; turning the panorama itself gives any yaw at no cost.
        azimuths = tuple(np.arange(count) * 360 / count)
        layout = ViewLayout(azimuths, rng.choice([-12.0, 0.0, 12.0]), *[rng.choice([75.0, 100.0])] * 2)
        views = cut_views(np.roll(place, rng.integers(place.shape[1]), axis=1), layout, (SIZE, SIZE))
        backgrounds = [(np.ascontiguousarray(view[..., :3]), view[..., 3]) for view in views]
        for index in range(count):
            if rng.random() < 0.2:
                plain = cv2.resize(self._plain_photo(rng), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
                backgrounds[index] = plain, np.zeros((SIZE, SIZE), np.uint8)
        return backgrounds

    def _plain_photo(self, rng) -> np.ndarray:
        """A photograph, or a piece of another panorama, of nothing that sounds."""
        plain = [item for item in self.collection.photos[BACKGROUND_CONCEPT] if not self.collection.shows_people(item)]
        if plain and rng.random() < 0.7:
            return jitter(rng, self.collection.photo(plain[rng.integers(len(plain))]))
        for _ in range(ATTEMPTS):
            panorama, people = self.collection.place(rng)
            height = panorama.shape[0] // 2
            left = rng.integers(panorama.shape[1] - height)
            part = slice(height // 2, height // 2 + height), slice(left, left + height)
            if not people[part].any():
                return jitter(rng, panorama[part])
        return jitter(rng, self.collection.photo(plain[rng.integers(len(plain))]) if plain else panorama[part])

    def _view(self, rng, view: np.ndarray, people: np.ndarray, names: list[str]):
        """Pastes objects of the scene's concepts into one view; the last of its objects is the people there before."""
        config = self.config
        draw = rng.random()
        if draw > 1 - config.mosaic:
            return self._mosaic(rng, view, names)
        full = config.no_object <= draw < config.no_object + config.full_view
        count = 0 if draw < config.no_object else 1 if full else rng.integers(1, PASTED + 1)
        owner, strongest = np.full((SIZE, SIZE), BACKGROUND), np.zeros((SIZE, SIZE), np.float32)
        concepts, hidden = np.full(PASTED + 1, IGNORE), np.zeros((SIZE, SIZE), np.float32)
        picture, with_heads = np.dstack([view, people]), False  # what is pasted hides people, or brings some
        if not full and rng.random() < config.decoy:  # a seam alone must not mean an object
            decoy = self._plain_photo(rng)
            self._place(rng, picture, hidden, np.dstack([decoy, np.zeros_like(decoy[..., 0])]), False)
        for index in range(count):
            name, photo = self._object(rng, names)
            coverage = np.zeros((SIZE, SIZE), np.float32)
            self._place(rng, picture, coverage, photo, full)
            owner[coverage > 0.5], concepts[index] = index, self.collection.class_of[name]
            strongest = np.maximum(strongest * (coverage < 0.5), coverage)
            with_heads |= bool((photo[..., 3] >= SURE).any())
        view, people = picture[..., :3], picture[..., 3]
        # Told always, they would be a third of all objects, and the model would see people everywhere.
        if people.any() and PERSON in self.collection.class_of and (with_heads or rng.random() < config.passers_by):
            owner[people >= SURE], concepts[PASTED] = PASTED, self.collection.class_of[PERSON]
        cells = self._patch_owner(owner, PASTED + 1)
        cells[_patch_mean((people > 0) & (people < SURE)) > 0.5] = IGNORE  # bodies: neither what is held nor nothing
        unsure = (_patch_mean(strongest) > 0.15) | (_patch_mean(people > 0) > 0.15)  # a fading rim; perhaps somebody
        cells[unsure & (cells == BACKGROUND)] = IGNORE
        return np.ascontiguousarray(view), cells, concepts

    def _object(self, rng, names: list[str]) -> tuple[str, np.ndarray]:
        """A concept and a photograph of it, with the heads of people who are not what it shows as fourth channel.

        Else the bodies of players and workers would be taken for their instruments and tools, and people for them.
        """
        name = names[rng.integers(len(names))]
        choices = self.collection.photos[name]
        item = choices[rng.integers(len(choices))]
        photo = self.collection.photo(item)
        heads = np.zeros(photo.shape[:2], np.uint8)
        if self.config.heads and name not in SHOW_PEOPLE:
            heads = self.collection.heads(item, *photo.shape[:2])
        return name, jitter(rng, np.dstack([photo, heads]))

    def _mosaic(self, rng, view: np.ndarray, names: list[str]):
        """Tiles one view with up to three objects; a fourth tile shows something that does not sound."""
        owner, concepts = np.full((SIZE, SIZE), BACKGROUND), np.full(PASTED + 1, IGNORE)
        view[:] = cv2.resize(self._plain_photo(rng), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        for index, (top, left, bottom, right) in enumerate(tiles(rng, SIZE)[:PASTED]):
            name, photo = self._object(rng, names)
            height, width = bottom - top, right - left
            coverage = np.zeros((SIZE, SIZE), np.float32)
            paste(view, coverage, covering(photo[..., :3], height, width), seam(rng, height, width), left, top)
            owner[coverage > 0.5], concepts[index] = index, self.collection.class_of[name]
        return view, self._patch_owner(owner, PASTED), concepts

    def _place(self, rng, view, coverage, photo, full: bool) -> None:
        if full:
            scaled = cv2.resize(photo, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            return paste(view, coverage, scaled, np.ones((SIZE, SIZE), np.float32), 0, 0)
        side = np.exp(rng.uniform(*np.log(self.config.photo_px)))
        scale = side / min(photo.shape[:2])
        width, height = (max(24, int(length * scale)) for length in (photo.shape[1], photo.shape[0]))
        scaled = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
        alpha = feathered_alpha(rng, height, width)
        x, y = (int(rng.uniform(*sorted((-0.2 * length, SIZE - 0.8 * length)))) for length in (width, height))
        paste(view, coverage, scaled, alpha, x, y)

    @staticmethod
    def _patch_owner(owner: np.ndarray, count: int) -> np.ndarray:
        shares = np.stack([_patch_mean(owner == index) for index in range(max(count, 1))])
        return np.where(shares.max(axis=0) > 0.5, shares.argmax(axis=0), BACKGROUND)

    def _sound(self, rng, names: list[str]):
        """One mixture of none, one or two sources of the scene (or offscreen ones) with background noise."""
        config = self.config
        count = 0 if rng.random() < config.no_sound else 2 if rng.random() < config.two_sounds else 1
        heard = [name for name in names if self.collection.sounds[name]]
        sources, concepts = [], np.full(2, IGNORE)
        for index in range(count):
            pool = self._audible(rng) if not heard or rng.random() < config.offscreen else heard
            name = pool[rng.integers(len(pool))]
            choices = self.collection.sounds[name]
            recording = self.collection.sound(choices[rng.integers(len(choices))])
            samples = excerpt(rng, at_speed(recording, rng.uniform(0.85, 1.18)))
            if rng.random() < config.reverberant:
                samples = reverberant(rng, samples, rng.uniform(0.15, 0.8), 10 ** rng.uniform(-0.5, 1.0))
            sources.append(at_level(samples, rng.uniform(-35, -12)))
            concepts[index] = self.collection.class_of[name]
        if count == 2 and concepts[0] == concepts[1]:
            sources, concepts = [sources[0] + sources[1]], np.array([concepts[0], IGNORE])
        noise = self._noise(rng, len(sources) == 0)
        mixture = np.clip(sum(sources, noise), -1, 1)
        return masked(rng, features.log_mel(mixture)), self._dominance(sources, noise), concepts

    def _noise(self, rng, alone: bool) -> np.ndarray:
        """Recorded background or white noise; sometimes next to nothing."""
        length = int(SECONDS * features.SAMPLE_RATE)
        floor = (rng.standard_normal(length) * 10 ** (rng.uniform(-100, -70) / 20)).astype(np.float32)
        if rng.random() < 0.4:
            return floor
        level = rng.uniform(-50, -15) if alone else rng.uniform(-70, -30)
        draw = rng.random()
        if draw < 0.2:
            coloured = pink_noise(rng, length) if draw < 0.1 else rng.standard_normal(length).astype(np.float32)
            return floor + at_level(coloured, level)
        if draw < 0.35:
            fundamental = rng.choice([50.0, 60.0, rng.uniform(25.0, 400.0)])
            return floor + at_level(hum(rng, length, fundamental, rng.permutation(np.arange(1, 9))[:4]), level)
        choices = self.collection.sounds[BACKGROUND_CONCEPT]
        if not choices:
            return floor + at_level(pink_noise(rng, length), level)
        return floor + at_level(excerpt(rng, self.collection.sound(choices[rng.integers(len(choices))])), level)

    @staticmethod
    def _dominance(sources: list[np.ndarray], noise: np.ndarray) -> np.ndarray:
        """Which source holds most of the power in each time-frequency patch; IGNORE where none clearly does."""
        power = np.stack([features.patch_power(features.mel_power(part)) for part in (*sources, noise)])
        share = power / np.maximum(power.sum(axis=0), 1e-20)
        owner = np.where(share.max(axis=0) > 0.6, share.argmax(axis=0), IGNORE)
        owner[owner == len(sources)] = BACKGROUND
        owner[power.sum(axis=0) < features.SILENCE] = BACKGROUND
        return owner


def _patch_mean(picture: np.ndarray) -> np.ndarray:
    return picture.reshape(SIZE // STRIDE, STRIDE, SIZE // STRIDE, STRIDE).mean(axis=(1, 3))
