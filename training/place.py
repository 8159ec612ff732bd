"""What lives in a place, found in an unlabelled recording of it by the model that is to be adapted.

Things are seen again and again, so regions of its pictures that look alike to the visual encoder are one thing
(spherical DP-means, avssl_ros/clustering.py); sounds that sound alike to the audio encoder are one kind of sound.
Which thing makes which sound follows from two independent signs: the model's own evidence, averaged over all windows
and pictures, and presence, for what is not in view is not heard from there (a likelihood ratio over the stretches of
the recording between two pictures). The name of a thing is what most of its sounds and its look speak for. So a thing
that looks like another, but sounds right, or the other way round, is set right by what the recording holds of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avssl_ros import Localizer, fusion
from avssl_ros.clustering import dp_means
from avssl_ros.geometry import angle_between
from training.recordings import Moment, PlaceRecording

REGIONS = 8  # looked at in a picture
ALIKE = 0.5  # cosine within a kind of look or of sound
LEAST_SHOWN = 0.2  # share of the pictures that a thing must be in
LEAST_SOUNDS = 4  # windows of a kind of sound
ONE_SOUND = 0.6  # share of a window from which on its loudest sound stands for it
PRESENCE = 0.5  # weight of the likelihood ratio, whose stretches are not as independent as it takes them for
LEAST_MATCH = 0.15  # mean evidence for a thing below which a sound is taken for one from out of view
LOOK = 20.0  # windows of sound that the look of a thing counts for when it is named
STRETCH_SECONDS = 20.0  # of the recording, within which what is in view and heard is one observation
SHUFFLES = 999  # of the sounds among the stretches
EVIDENCE_FLOOR = 0.05
ROUNDS = 4
FAINT = 0.02


@dataclass(frozen=True)
class Look:
    """A region of a picture that may be a thing: directions and extent in radians, unit mean embedding (D,) and its
    gate, and what is seen of each concept (C,)."""

    picture: int
    azimuth: float
    elevation: float
    extent: float
    vector: np.ndarray
    gate: float
    seen: np.ndarray


@dataclass(frozen=True)
class Thing:
    """`concept` is the index of its label; `looks` of the recording; `sounds` are numbers of moments, `kinds` their
    mean directions (K, D); `appearance` (D,) is the mean direction of its looks."""

    concept: int
    looks: tuple[Look, ...]
    sounds: tuple[int, ...]
    kinds: np.ndarray
    appearance: np.ndarray


@dataclass(frozen=True)
class Inventory:
    """The things that are seen and heard; all looks; numbers of quiet moments; how many windows there are in which one
    sound stands out, and what share of them a thing in view accounts for; and how probable it is that what is heard
    would go with what is in view so well if it had nothing to do with it."""

    things: tuple[Thing, ...]
    looks: tuple[Look, ...]
    quiet: tuple[int, ...]
    heard: int
    accounted: float
    chance: float


def looks_of(localizer: Localizer, picture: np.ndarray, number: int) -> list[Look]:
    """The regions of an equirectangular picture in which the visual encoder's gate is open."""
    views, surface = localizer.cut(picture, "equirectangular")
    visual = localizer.encoders.visual(views).reshape(-1, localizer.encoders.dimensions)
    maps = surface.project(np.vstack([np.linalg.norm(visual, axis=1)[None], visual.T]))
    flat, found = maps.reshape(len(maps), -1), []
    for region in fusion.find_regions(maps[0], surface, REGIONS):
        weight = flat[0, region.cells] ** 2 * surface.area.ravel()[region.cells]
        mean = flat[1:, region.cells] @ weight / weight.sum()
        gate = float(np.linalg.norm(mean))
        seen = np.maximum(localizer.prototypes @ flat[1:, region.cells], 0.0).max(axis=1)
        for heard, makers in localizer.made_by.items():
            seen[heard] = max(seen[heard], *seen[makers])
        found.append(Look(number, region.azimuth, region.elevation, region.extent, mean / max(gate, 1e-6), gate, seen))
    return found


class _Sounds:
    """The windows of a recording in which one sound stands out, and their kinds."""

    def __init__(self, localizer: Localizer, moments: list[Moment]):
        heard = [localizer.hear(moment.sound) for moment in moments]
        self.quiet = tuple(index for index, clusters in enumerate(heard) if not clusters)
        loudest = {index: clusters[0] for index, clusters in enumerate(heard)
                   if clusters and clusters[0].share > ONE_SOUND}
        self.window = np.array(list(loudest), int)
        self.picture = np.array([moments[index].picture for index in loudest], int)
        self.vector = np.array([sound.centroid for sound in loudest.values()])
        self.concepts = np.array([sound.concepts for sound in loudest.values()])
        self.kinds = []
        if loudest:
            gates = np.array([sound.gate for sound in loudest.values()])
            _, kind = dp_means(self.vector, gates, ALIKE)
            self.kinds = [np.flatnonzero(kind == k) for k in np.unique(kind) if (kind == k).sum() >= LEAST_SOUNDS]


def take_inventory(localizer: Localizer, recording: PlaceRecording, moments: list[Moment], seed: int = 0,
                   looked: dict[int, list[Look]] | None = None) -> Inventory:  # fmt: skip
    """What lives in the place, from the pictures and sounds of some moments of its recording.

    `looked` holds the looks of pictures by their numbers; missing ones are added, so that no picture is seen twice.
    """
    looked, numbers = {} if looked is None else looked, sorted({moment.picture for moment in moments})
    for number in numbers:
        if number not in looked:
            looked[number] = looks_of(localizer, recording.picture(number), number)
    looks = [look for number in numbers for look in looked[number]]
    sounds, kinds = _Sounds(localizer, moments), _kinds_of_look(looks, len(numbers))
    if not kinds or not sounds.kinds:
        return Inventory((), tuple(looks), sounds.quiet, len(sounds.window), 0.0, 1.0)
    stretch = stretches(moments)
    shown = _in_stretches(stretch, [[looks[index].picture for index in kind] for kind in kinds])
    sounded = _in_stretches(stretch, [sounds.picture[kind] for kind in sounds.kinds])
    seen = np.array([np.mean([looks[index].seen for index in kind], axis=0) for kind in kinds])
    heard = np.array([sounds.concepts[kind].mean(axis=0) for kind in sounds.kinds])
    count = np.array([len(kind) for kind in sounds.kinds])
    presence = np.array([[log_ratio_of_presence(sound, look) for look in shown] for sound in sounded])
    maker, names = pair(seen, heard, presence, count)
    things = [_thing(names[v], [looks[i] for i in kinds[v]], sounds,
                     [sounds.kinds[a] for a in np.flatnonzero(maker == v)])
              for v in range(len(kinds)) if (maker == v).any()]
    accounted = count[maker >= 0].sum() / max(len(sounds.window), 1)
    chance = _chance(looks, sounds, stretch, shown, pair(seen, heard, 0 * presence, count)[0], seed)
    return Inventory(tuple(things), tuple(looks), sounds.quiet, len(sounds.window), float(accounted), chance)


def _chance(looks: list[Look], sounds: _Sounds, stretch: dict[int, int], shown: np.ndarray, maker: np.ndarray,
            seed: int) -> float:
    """How often the sounds of the stretches, shuffled among them, go as well with what is in view as unshuffled.

    Two signs are added, each in its standard deviations: whether the makers, who were found without asking for it, are
    there when their sounds are heard, and how much of what each window says is to be seen in its stretch. `maker` is of
    each kind of sound, as of `pair`.
    """
    total, rng = shown.shape[1], np.random.default_rng(seed)
    of_window = np.array([stretch[int(picture)] for picture in sounds.picture])
    often = shown.mean(axis=1, keepdims=True)
    unusual = (shown - often) / np.sqrt(often * (1 - often) + 0.02)  # things that are always there say nothing
    there, alike = np.zeros((2, total, total))  # stretch of the sounds, stretch of the pictures
    for kind, made_by in zip(sounds.kinds, maker):
        if made_by >= 0:
            there += np.bincount(of_window[kind], minlength=total)[:, None] * unusual[made_by]
    in_stretch = np.array([stretch[look.picture] for look in looks])
    evidence = np.array([look.seen for look in looks]) @ sounds.concepts.T  # (looks, windows)
    best = np.array([evidence[in_stretch == s].max(axis=0, initial=0.0) for s in range(total)]).T
    best = np.log(best + EVIDENCE_FLOOR)
    np.add.at(alike, of_window, best - best.mean(axis=1, keepdims=True))
    orders = [np.arange(total), *(rng.permutation(total) for _ in range(SHUFFLES))]
    signs = np.array([[table[np.arange(total), order].sum() for order in orders] for table in (there, alike)])
    together = (signs / np.maximum(signs[:, 1:].std(axis=1, keepdims=True), 1e-9)).sum(axis=0)
    return float(np.mean(together >= together[0]))


def stretches(moments: list[Moment]) -> dict[int, int]:
    """The number of the stretch of the recording that each picture belongs to: one picture, or several that followed
    each other within STRETCH_SECONDS."""
    number, begun, found = -1, -np.inf, {}
    for moment in moments:
        if moment.picture in found:
            continue
        if moment.time - begun >= STRETCH_SECONDS:
            number, begun = number + 1, moment.time
        found[moment.picture] = number
    return found


def _in_stretches(stretch: dict[int, int], pictures: list) -> np.ndarray:
    """(N, stretches) bool of N lists of pictures."""
    numbers = np.arange(max(stretch.values()) + 1)
    return np.array([np.isin(numbers, [stretch[int(picture)] for picture in row]) for row in pictures])


def _kinds_of_look(looks: list[Look], pictures: int) -> list[np.ndarray]:
    """Indices of the looks of each thing that is there often enough."""
    if not looks:
        return []
    _, kind = dp_means(np.stack([look.vector for look in looks]), np.array([look.gate for look in looks]), ALIKE)
    members = [np.flatnonzero(kind == k) for k in np.unique(kind)]
    return [m for m in members if len({looks[i].picture for i in m}) >= max(2, LEAST_SHOWN * pictures)]


def _thing(name: int, looks: list[Look], sounds: _Sounds, kinds: list[np.ndarray]) -> Thing:
    directions = np.stack([sounds.vector[kind].mean(axis=0) for kind in kinds])
    appearance = np.mean([look.gate * look.vector for look in looks], axis=0)
    windows = sounds.window[np.concatenate(kinds)]
    return Thing(int(name), tuple(looks), tuple(windows.tolist()), directions, appearance)


def log_ratio_of_presence(heard: np.ndarray, seen: np.ndarray) -> float:
    """Log likelihood ratio of "heard depends on seen" over "heard is independent of it", positive where it is heard
    more when seen. Both (N,) bool, over stretches of the recording."""
    def log_likelihood(hits: int, trials: int) -> float:
        rate = (hits + 0.5) / (trials + 1)
        return hits * np.log(rate) + (trials - hits) * np.log(1 - rate)

    hits = np.array([(heard & ~seen).sum(), (heard & seen).sum()])
    trials = np.array([(~seen).sum(), seen.sum()])
    apart = sum(log_likelihood(h, n) for h, n in zip(hits, trials)) - log_likelihood(hits.sum(), trials.sum())
    absent, present = hits / np.maximum(trials, 1)
    return float(apart if present > absent else -apart)


def pair(seen: np.ndarray, heard: np.ndarray, presence: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which thing makes which kind of sound, and what the things are.

    Args:
        seen: (V, C) of each thing. heard: (A, C) of each kind of sound. presence: (A, V) log_ratio_of_presence.
        count: (A,) windows of each kind.

    Returns:
        maker (A,): index of the thing, -1 for none in view. names (V,): concept of each thing.
    """
    known, names = seen.copy(), seen.argmax(axis=1)
    for _ in range(ROUNDS):
        score = np.log(heard @ known.T + FAINT) + PRESENCE * presence
        maker = np.where(score.max(axis=1) > np.log(LEAST_MATCH), score.argmax(axis=1), -1)
        for v in range(len(seen)):
            mine = maker == v
            names[v] = (LOOK * seen[v] + count[mine] @ heard[mine]).argmax()
            known[v] = seen[v]
            if mine.any():
                known[v] = seen[v] / 2
                known[v, names[v]] = 1.0
    return maker, names


def nearest_look(thing: Thing, looks: list[Look]) -> Look | None:
    """Which of the looks of a picture is this thing; None where none looks like it."""
    best = max(looks, key=lambda look: float(look.vector @ thing.appearance), default=None)
    if best is None or float(best.vector @ thing.appearance) < ALIKE * float(np.linalg.norm(thing.appearance)):
        return None
    return best


def is_apart(first: Look, second: Look, least: float) -> bool:
    """Whether two looks are at least `least` radians from each other."""
    return float(angle_between(first.azimuth, first.elevation, second.azimuth, second.elevation)) >= least
