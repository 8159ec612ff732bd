"""From clusters to sources: one map on the sphere, regions in it, directions, confidences.

An image patch speaks for a sound as far as both belong to the same prototypes. The patches of all views are blended
onto one grid, where a source is the connected region around a peak.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from avssl_ros.clustering import Cluster
from avssl_ros.geometry import direction_to_vector, vector_to_direction

REGION_LEVEL = 0.5  # of its peak: where a region ends
REGIONS = 3  # candidates looked at for each sound
PEAK_CELLS = 15  # two maxima nearer than half of this (10 degrees on the sphere) are one
LIKELY_CONCEPTS = 6  # of a sound that are looked for
WEAKEST_PEAK = 0.2  # of the strongest: weaker maxima are no candidates


@dataclass(frozen=True)
class Surface:
    """The grid that maps are drawn on: the sphere, or the plane of an ordinary image.

    Attributes:
        azimuth, elevation: (h, w) radians of the cells.
        area: (h, w) solid angle of the cells, relative.
        wraps: whether the last column touches the first.
        project: patch values (K, P) to maps (K, h, w).
    """

    azimuth: np.ndarray
    elevation: np.ndarray
    area: np.ndarray
    wraps: bool
    project: object


@dataclass(frozen=True)
class Region:
    """A connected region of one sound's map: direction, size, and what speaks for it."""

    azimuth: float
    elevation: float
    extent: float
    peak: float
    mask: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A region that may be what makes a sound.

    Attributes:
        region: where, and how strong.
        concept: index of the concept that speaks most for it.
        features: (F,) for its confidence, see `candidates`.
    """

    region: Region
    concept: int
    features: np.ndarray


def evidence_maps(visual: np.ndarray, concepts: np.ndarray, prototypes: np.ndarray, surface: Surface):
    """Maps (K, h, w) of what a sound and the view share, for the sound's likeliest concepts (K,), likeliest first.

    A map holds the probability that the sound is of the concept, times cosine and gate of what is seen there to its
    prototype, negative values cut.

    Args:
        visual: (P, D) embeddings of image patches. concepts: (C,) of a Cluster. prototypes: (C, D).
    """
    likely = np.argsort(-concepts)[:LIKELY_CONCEPTS]
    shared = np.maximum(visual @ prototypes[likely].T, 0.0) * concepts[likely]
    return likely, surface.project(shared.T)


def find_regions(evidence: np.ndarray, surface: Surface, count: int = REGIONS) -> list[Region]:
    """The `count` strongest regions of a map, strongest first: what joins a local maximum above half of it."""
    regions = []
    for row, column in _peaks(evidence, surface.wraps):
        if any(region.mask[row, column] for region in regions):
            continue
        peak = float(evidence[row, column])
        mask = _connected(evidence, row, column, REGION_LEVEL * peak, surface.wraps)
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
    turned = np.roll(values, shift, axis=1)
    _, labels = cv2.connectedComponents((turned >= level).astype(np.uint8), connectivity=8)
    mask = labels == labels[row, column + shift]
    return np.roll(mask, -shift, axis=1)


def _region(evidence: np.ndarray, mask: np.ndarray, peak: float, surface: Surface) -> Region:
    weight = evidence[mask] ** 2 * surface.area[mask]
    vectors = direction_to_vector(surface.azimuth[mask], surface.elevation[mask])
    centre = weight @ vectors
    azimuth, elevation = vector_to_direction(centre)
    # A spherical cap of the same solid angle: area = 2 pi (1 - cos extent).
    cap = np.clip(1 - float(surface.area[mask].sum()) / (2 * np.pi), -1.0, 1.0)
    return Region(float(azimuth), float(elevation), float(np.arccos(cap)), peak, mask)


def candidates(visual: np.ndarray, cluster: Cluster, prototypes: np.ndarray, surface: Surface):
    """The map (h, w) of a sound and its Candidates, strongest first.

    Their features: log of the peak; lead over the other regions (log ratio); what is seen there (cosine times gate to
    the concept's prototype), alone, times the sound's gate, and its log; the sound's gate; its share.
    """
    likely, maps = evidence_maps(visual, cluster.concepts, prototypes, surface)
    evidence = maps.max(axis=0)
    regions = find_regions(evidence, surface)
    found = []
    for region in regions:
        others = max((other.peak for other in regions if other is not region), default=0.0)
        lead = np.clip(np.log((region.peak + 0.02) / (others + 0.02)), -3.0, 3.0)
        winner = int(maps[:, region.mask].max(axis=1).argmax())
        concept = int(likely[winner])
        seen = region.peak / max(float(cluster.concepts[concept]), 1e-6)
        row = [np.log(region.peak + 0.02), lead, seen, seen * cluster.gate, np.log(seen + 0.05),
               cluster.gate, cluster.share]  # fmt: skip
        found.append(Candidate(region, concept, np.array(row)))
    return evidence, found


def unseen_features(cluster: Cluster) -> np.ndarray:
    """Features (2,) of the confidence that a sound is rightly named: probability of its likeliest concept, and gate."""
    return np.array([cluster.concepts.max(), cluster.gate])


def confidences(features: np.ndarray, model: dict) -> np.ndarray:
    """Probabilities (N,) that each of N candidates (N, F) makes a sound that one of them makes, or none.

    Conditional logit (McFadden 1974), fitted by training/calibrate.py on validation scenes: with scores s the candidate
    i has exp(s_i) / (1 + sum of exp(s)). For a single candidate this is logistic regression.
    """
    scores = model["bias"] + np.asarray(features, dtype=float) @ np.asarray(model["weights"])
    odds = np.exp(np.clip(scores, -30.0, 30.0))
    return odds / (1.0 + odds.sum())
