"""From clusters to sources: one map on the sphere, regions in it, directions, confidences.

A cluster's evidence at an image patch is the product of the patch's embedding with the cluster's centroid. The patches
of all views are blended onto one grid, where a source is the connected region around a peak.
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


def evidence_map(visual: np.ndarray, centroid: np.ndarray, surface: Surface) -> np.ndarray:
    """Map (h, w) in [0, 1] of a centroid: cosine times gate of what is seen there, negative values cut."""
    return np.maximum(surface.project((visual @ centroid)[None])[0], 0.0)


def find_regions(evidence: np.ndarray, surface: Surface, count: int = REGIONS) -> list[Region]:
    """The `count` strongest regions of a map, strongest first: what is connected with a local maximum above half of it."""
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


def candidates(visual: np.ndarray, cluster: Cluster, surface: Surface) -> tuple[np.ndarray, list[Region], np.ndarray]:
    """The map (h, w) of a sound, its regions strongest first, and the features (regions, 8) of their confidence.

    Features: peak; lead over the other regions (log ratio); peak of the sound's own centroid there, before what is in
    view has drawn it nearer; gate; share; and the products of the two peaks with gate and share.
    """
    evidence = evidence_map(visual, cluster.centroid, surface)
    alone = evidence_map(visual, cluster.sound, surface)
    regions = find_regions(evidence, surface)
    rows = []
    for region in regions:
        others = max((other.peak for other in regions if other is not region), default=0.0)
        lead = np.clip(np.log((region.peak + 0.02) / (others + 0.02)), -3.0, 3.0)
        heard = float(alone[region.mask].max())
        rows.append([region.peak, lead, heard, cluster.gate, cluster.share, heard * cluster.gate,
                     heard * cluster.share, np.log(heard + 0.05)])  # fmt: skip
    return evidence, regions, np.asarray(rows, dtype=float).reshape(-1, 8)


def confidence(features: np.ndarray, model: dict) -> float:
    """Logistic regression fitted by training/calibrate.py on validation scenes."""
    score = model["bias"] + float(np.dot(model["weights"], features))
    return float(1.0 / (1.0 + np.exp(-np.clip(score, -30.0, 30.0))))


def exclusive(confidences: np.ndarray) -> np.ndarray:
    """Confidences (N,) of regions that claim the same sound, given that one of them or none makes it.

    With odds o = p / (1 - p) of each on its own, the probability that it is region i alone is o_i / (1 + sum of o).
    """
    odds = confidences / np.maximum(1.0 - confidences, 1e-6)
    return odds / (1.0 + odds.sum())
