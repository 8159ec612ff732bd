"""Which embeddings of sight and sound belong together, and how many sources sound.

Training draws everything that belongs to one kind of sounding object, seen or heard, around one direction of the
embedding space: its prototype. The sound's time-frequency patches are clustered among themselves by weighted spherical
DP-means (Kulis and Jordan 2012; cosines instead of distances, so that the number of clusters follows from one
threshold): a cluster is one sound. What it shares with image patches is measured through the prototypes, to which the
patches of both belong with responsibilities as in a mixture of von Mises-Fisher distributions (Banerjee et al. 2005),
so that a sound which could be one of two things is settled by what is in view (fusion.py). The norm of an embedding is
its gate and serves as its weight: background and silence take no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Both as in training (training/losses.py takes them from here).
SHARPNESS = 12.0  # concentration around a prototype: scale of cosines before a softmax
NOTHING = 0.4  # cosine at which "nothing that sounds" stands among the prototypes

# Neutral until training/calibrate.py has fitted them on validation scenes; see MODEL_CARD.md.
NEUTRAL_DECISION = {
    "level_floor_db": -60.0,  # loudest 100 ms below this, dB of full scale: nothing sounds
    "audio_gate": 0.2,  # smallest gate of a time-frequency patch that takes part
    "same_cosine": 0.5,  # time-frequency patches closer than this may share a cluster
    "smallest_share": 0.12,  # clusters with less of the sound's weight are strays
    "source": {"bias": 1.0, "weights": [1.0, 1.0] + 14 * [0.0]},  # see fusion.confidences
    "stream": {"bias": 1.0, "weights": [1.0, 1.0] + 14 * [0.0]},  # the same for what sounds in the last moment
    "unseen": {"bias": -3.0, "weights": [6.0, 0.0]},
    "publish": 0.3,  # smallest confidence of a source
    "publish_unseen": 0.5,  # and of a sound that is not in view
}


@dataclass(frozen=True)
class Cluster:
    """One sound.

    Attributes:
        centroid: (D,) unit vector, the mean direction of its time-frequency patches.
        concepts: (C,) its mean responsibilities, the probability that it is of each concept; the rest to 1 is nothing.
        gate: weighted mean gate of its time-frequency patches, 0..1.
        share: of the sound's weight that belongs to it, 0..1.
    """

    centroid: np.ndarray
    concepts: np.ndarray
    gate: float
    share: float


def responsibilities(embeddings: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) that embeddings (N, D) in the unit ball belong to prototypes (C, D); the rest is nothing."""
    logits = SHARPNESS * (embeddings @ prototypes.T)
    highest = np.maximum(logits.max(axis=1, keepdims=True), SHARPNESS * NOTHING)
    likelihood = np.exp(logits - highest)
    return likelihood / (likelihood.sum(axis=1, keepdims=True) + np.exp(SHARPNESS * NOTHING - highest))


def cluster(audio: np.ndarray, audio_weight: np.ndarray, prototypes: np.ndarray, decision: dict) -> list[Cluster]:
    """Clusters of the sound, the one with most of it first.

    Args:
        audio: (Q, D) embeddings of time-frequency patches.
        audio_weight: (Q,) 0..1, how much each time-frequency patch counts (0 where nothing is heard).
        prototypes: (C, D) unit vectors.
        decision: thresholds, see NEUTRAL_DECISION.
    """
    gate = np.linalg.norm(audio, axis=1)
    taking_part = (gate > decision["audio_gate"]) & (audio_weight > 0)
    if not taking_part.any():
        return []
    audio, gate = audio[taking_part], gate[taking_part]
    weight = gate * audio_weight[taking_part]
    centroids, member = dp_means(audio / gate[:, None], weight, decision["same_cosine"])
    share = np.bincount(member, weight, len(centroids)) / weight.sum()
    belonging = responsibilities(audio, prototypes)
    clusters = []
    for index in np.argsort(-share):
        if share[index] >= decision["smallest_share"]:
            mine = member == index
            concepts = np.average(belonging[mine], axis=0, weights=weight[mine])
            mean_gate = float(np.average(gate[mine], weights=weight[mine]))
            clusters.append(Cluster(centroids[index], concepts, mean_gate, float(share[index])))
    return clusters


def dp_means(directions: np.ndarray, weight: np.ndarray, same_cosine: float, rounds: int = 8):
    """Weighted spherical DP-means.

    A direction further than `same_cosine` from all centroids opens a new cluster; then directions are assigned and
    centroids moved until nothing changes.

    Args:
        directions: (N, D) unit vectors, N >= 1. weight: (N,) positive.

    Returns:
        centroids (K, D) unit vectors and the member index (N,) of each direction, K >= 1.
    """
    centroids = directions[[np.argmax(weight)]]
    member = np.full(len(directions), -1)
    for _ in range(rounds):
        cosine = directions @ centroids.T
        furthest = np.argmin(np.where(weight > 0, cosine.max(axis=1), np.inf))
        while cosine[furthest].max() < same_cosine:
            centroids = np.vstack([centroids, directions[furthest]])
            cosine = directions @ centroids.T
            furthest = np.argmin(cosine.max(axis=1))
        assigned = cosine.argmax(axis=1)
        if np.array_equal(assigned, member):
            break
        used, member = np.unique(assigned, return_inverse=True)
        centroids = np.stack([_mean_direction(directions[member == k], weight[member == k]) for k in range(len(used))])
    return centroids, (directions @ centroids.T).argmax(axis=1)


def _mean_direction(directions: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = weight @ directions
    return mean / max(float(np.linalg.norm(mean)), 1e-9)
