"""From clusters to sources: one map on the sphere, regions in it, directions, confidences.

An image patch speaks for a sound as far as both belong to the same prototypes. The patches of all views are blended
onto one grid, where a source is the connected region around a peak. What it explains of the sound is set aside before
the next source is looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np

from avssl_ros.clustering import Cluster
from avssl_ros.geometry import direction_to_vector, vector_to_direction

REGION_LEVEL = 0.5  # of its peak: where a region ends
REGIONS = 3  # candidates looked at for each sound
PEAK_CELLS = 15  # two maxima nearer than half of this (10 degrees on the sphere) are one
LIKELY_CONCEPTS = 8  # of what is heard that are looked for
ROUNDS = 8  # things looked for, one after another
APART = np.radians(15)  # what is nearer to something found already is no other source
LEAST_LEFT = 0.03  # of what is heard: where so little is unexplained, nothing more is looked for
CLEARLY_SEEN = 0.5  # cosine times gate to a prototype
WEAKEST_PEAK = 0.2  # of the strongest: weaker maxima are no candidates


@dataclass(frozen=True)
class Surface:
    """The grid that maps are drawn on: the rows of the sphere that views reach, or the plane of an ordinary image.

    Attributes:
        azimuth, elevation: (h, w) radians of the cells; `vectors` (h, w, 3) the same as unit vectors.
        area: (h, w) solid angle of the cells, relative.
        wraps: whether the last column touches the first.
        project: patch values (K, P) to maps (K, h, w).
        above, below: rows of the whole map before and after these, where nothing is seen.
    """

    azimuth: np.ndarray
    elevation: np.ndarray
    area: np.ndarray
    wraps: bool
    project: object
    above: int = 0
    below: int = 0
    vectors: np.ndarray | None = None

    def __post_init__(self):
        if self.vectors is None:
            object.__setattr__(self, "vectors", direction_to_vector(self.azimuth, self.elevation))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole map, (H, w)."""
        height, width = self.azimuth.shape
        return self.above + height + self.below, width

    def whole(self, values: np.ndarray) -> np.ndarray:
        """The whole map (H, w) that has these values (h, w) where something is seen, and zeros elsewhere."""
        drawn = np.zeros(self.shape, values.dtype)
        drawn[self.above : self.above + len(values)] = values
        return drawn


@dataclass(frozen=True)
class Region:
    """A connected region of one sound's map: direction, size, and what speaks for it.

    Attributes:
        azimuth, elevation, extent: radians; `extent` is the radius of a cap of the same solid angle.
        peak: highest value of the map. mask: (H, w) bool of the whole map. cells: the same as flat indices (N,) of the
            surface.
    """

    azimuth: float
    elevation: float
    extent: float
    peak: float
    mask: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A region that may be what makes a sound.

    Attributes:
        region: where, and how strong.
        concept: index of the concept that speaks most for it.
        sound: the cluster that has most of this concept.
        features: (F,) for its confidence, see `_features`.
    """

    region: Region
    concept: int
    sound: Cluster
    features: np.ndarray


def find_regions(evidence: np.ndarray, surface: Surface, count: int = REGIONS) -> list[Region]:
    """The `count` strongest regions of a map, strongest first: what joins a local maximum above half of it.

    A maximum that joins a stronger one at half of its own height is that one's shoulder, as legs are a body's, and no
    region.
    """
    regions, summits = [], []
    for row, column in _peaks(evidence, surface.wraps):
        if any(region.mask[surface.above + row, column] for region in regions):
            continue
        peak = float(evidence[row, column])
        mask = _connected(evidence, row, column, REGION_LEVEL * peak, surface.wraps)
        if any(mask[summit] for summit in summits):
            continue
        summits.append((row, column))
        regions.append(_region(evidence, mask, peak, surface))
        if len(regions) == count:
            break
    return regions


def _peaks(evidence: np.ndarray, wraps: bool) -> np.ndarray:
    """Rows and columns (N, 2) of the local maxima within PEAK_CELLS, strongest first; weak ones are left out."""
    half = PEAK_CELLS // 2
    border = cv2.BORDER_WRAP if wraps else cv2.BORDER_REPLICATE
    padded = cv2.copyMakeBorder(evidence.astype(np.float32), 0, 0, half, half, border)
    highest = cv2.dilate(padded, np.ones((PEAK_CELLS, PEAK_CELLS), np.uint8))[:, half:-half]
    lowest_peak = max(1e-3, WEAKEST_PEAK * float(evidence.max()))
    found = np.argwhere((evidence >= highest) & (evidence >= lowest_peak))
    return found[np.argsort(-evidence[tuple(found.T)], kind="stable")]


def _connected(values: np.ndarray, row: int, column: int, level: float, wraps: bool) -> np.ndarray:
    """Cells above `level` connected with (row, column); on a sphere the map is first turned to that column."""
    shift = values.shape[1] // 2 - column if wraps else 0
    above = np.roll((values >= level).view(np.uint8), shift, axis=1)
    cv2.floodFill(above, None, (int(column) + shift, int(row)), 2, flags=8)  # 8 neighbours; all others stay 0 or 1
    return np.roll(above == 2, -shift, axis=1)


def _region(evidence: np.ndarray, mask: np.ndarray, peak: float, surface: Surface) -> Region:
    cells = np.flatnonzero(mask)
    area = surface.area.take(cells)
    weight = evidence.take(cells) ** 2 * area
    azimuth, elevation = vector_to_direction(weight @ surface.vectors.reshape(-1, 3).take(cells, axis=0))
    # A spherical cap of the same solid angle: area = 2 pi (1 - cos extent).
    cap = min(max(1 - float(area.sum()) / (2 * np.pi), -1.0), 1.0)
    return Region(float(azimuth), float(elevation), float(np.arccos(cap)), peak, surface.whole(mask), cells)


def heard_concepts(clusters: Sequence[Cluster]) -> np.ndarray:
    """(C,) of how much of all that is heard is of each concept; the rest to 1 is nothing."""
    shares = np.array([sound.share for sound in clusters])
    return (np.stack([sound.concepts for sound in clusters]) * shares[:, None]).sum(axis=0) / shares.sum()


def explain(visual: np.ndarray, clusters: Sequence[Cluster], prototypes: np.ndarray, surface: Surface,
            made_by: Mapping[int, Sequence[int]] = MappingProxyType({})):  # fmt: skip
    """Finds what is in view for what is heard, one thing after another, as matching pursuit does (Mallat, Zhang 1993).

    A map holds, for each direction, the sum over concepts of the probability that it is heard, times cosine and gate of
    what is seen there to its prototype. Its strongest region explains the concept that speaks most for it; the next
    round looks elsewhere, with what is left of the sound. So what is heard faintly beside something loud gets a map of
    its own, and what is in view decides between concepts that sound alike.

    Args:
        visual: (P, D) embeddings of image patches. clusters: one or more. prototypes: (C, D).
        made_by: concepts that are seen where another is heard, as people are where a crowd is.

    Yields:
        The map (h, w) of each round and its Candidates, strongest first.
    """
    heard = heard_concepts(clusters)
    likely = np.argsort(-heard)[:LIKELY_CONCEPTS]
    maps = surface.project(_seen(visual, prototypes, [[c, *made_by.get(c, ())] for c in likely.tolist()]))
    flat = maps.reshape(len(likely), -1)
    missing = float(heard[likely] @ np.clip(1.0 - flat.max(axis=1) / CLEARLY_SEEN, 0.0, 1.0))
    left, taken = heard[likely].astype(np.float32), np.zeros(surface.azimuth.shape, bool)
    for _ in range(ROUNDS):
        evidence = np.tensordot(left, maps, 1)
        explained = float(evidence[taken].max()) if taken.any() else None
        evidence[taken] = 0.0
        found = []
        regions = find_regions(evidence, surface)
        for region in regions:
            most = flat.take(region.cells, axis=1).max(axis=1)  # what is seen of each concept in the region
            winner = int((left * most).argmax())
            sound = max(clusters, key=lambda cluster: cluster.concepts[likely[winner]] * cluster.share)
            others = max((other.peak for other in regions if other is not region), default=0.0)
            row = _features(region, most, left, winner, sound, others, explained)
            row += [float(left.sum() / heard.sum()), missing, float(heard.max())]
            found.append(Candidate(region, int(likely[winner]), sound, np.array(row)))
        if not found:
            return
        yield evidence, found
        first = found[0]
        left[likely == first.concept] = 0.0
        centre = direction_to_vector(first.region.azimuth, first.region.elevation)
        taken |= surface.vectors @ centre > np.cos(APART)
        taken.ravel()[first.region.cells] = True
        if left.sum() < LEAST_LEFT:
            return


def _seen(visual: np.ndarray, prototypes: np.ndarray, looked_for: list[list[int]]) -> np.ndarray:
    """(K, P) cosine times gate, at least 0, of each patch to the nearest of each list of concepts."""
    cosines = prototypes[np.concatenate(looked_for)] @ visual.T
    ends = np.cumsum([len(concepts) for concepts in looked_for])
    nearest = [cosines[end - len(concepts) : end].max(axis=0) for end, concepts in zip(ends, looked_for)]
    return np.maximum(nearest, 0.0)


def _features(region, seen, left, winner: int, sound: Cluster, others: float, explained: float | None) -> list[float]:
    """What the confidence of a candidate rests on; `explain` adds what is the same for all of a round.

    Log of the peak; lead over the other regions and over what earlier rounds took (log ratios); what is seen of the
    concept, alone, its log, and times the sound's gate; how much of it is heard, and its log; gate and share of the
    sound; whether something was found before; how much of what speaks for the region this concept is; size of the
    region.
    """
    most, heard = float(seen[winner]), float(left[winner])
    return [
        np.log(region.peak + 0.02),
        _lead(region.peak, others),
        0.0 if explained is None else _lead(region.peak, explained),
        most, np.log(most + 0.05), most * sound.gate,
        heard, np.log(heard + 0.02), sound.gate, sound.share,
        float(explained is not None),
        heard * most / max(float(left @ seen), 1e-6),
        region.extent,
    ]  # fmt: skip


def _lead(peak: float, other: float) -> float:
    return min(max(float(np.log((peak + 0.02) / (other + 0.02))), -3.0), 3.0)


def unseen_features(cluster: Cluster) -> np.ndarray:
    """Features (2,) of the confidence that a sound is rightly named: probability of its likeliest concept, and gate."""
    return np.array([cluster.concepts.max(), cluster.gate])


def confidences(features: np.ndarray, model: dict) -> np.ndarray:
    """Probabilities (N,) that each of N candidates (N, F) of one round makes the sound: one of them does, or none.

    Conditional logit (McFadden 1974), fitted by training/calibrate.py on validation scenes: with scores s the candidate
    i has exp(s_i) / (1 + sum of exp(s)). For a single candidate this is logistic regression.
    """
    scores = model["bias"] + np.asarray(features, dtype=float) @ np.asarray(model["weights"])
    odds = np.exp(np.clip(scores, -30.0, 30.0))
    return odds / (1.0 + odds.sum())
