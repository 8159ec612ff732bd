"""Which embeddings of sight and sound belong together, and how many sources sound.

The patches of all views and of the sound are clustered in the one embedding space by weighted spherical DP-means
(Kulis and Jordan 2012; cosines instead of distances, so that the number of clusters follows from one threshold). The
norm of an embedding is its gate and serves as its weight, so background and silence take no part. A cluster with sound
is a source; its sight, if there is any, says where (fusion.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Neutral until training/calibrate.py has fitted them on validation scenes; see MODEL_CARD.md.
NEUTRAL_DECISION = {
    "level_floor_db": -60.0,  # loudest 100 ms below this, dB of full scale: nothing sounds
    "audio_gate": 0.35,  # smallest gate of a time-frequency patch that takes part
    "visual_gate": 0.15,  # and of an image patch
    "same_cosine": 0.5,  # embeddings closer than this may share a cluster
    "smallest_share": 0.12,  # clusters with less of the sound's weight are strays
    "source": {"bias": -3.0, "weights": [6.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]},  # logistic regression, see fusion
    "unseen": {"bias": -3.0, "weights": [6.0]},
    "publish": 0.3,  # smallest confidence of a source
    "publish_unseen": 0.4,  # and of a sound that is not in view
}


@dataclass(frozen=True)
class Cluster:
    """One sound and what looks like it.

    Attributes:
        centroid: (D,) unit vector of the sight and sound in it.
        sound: (D,) unit vector of the sound alone.
        gate: weighted mean gate of its time-frequency patches, 0..1.
        share: of the sound's weight that belongs to it, 0..1.
    """

    centroid: np.ndarray
    sound: np.ndarray
    gate: float
    share: float


def cluster(visual: np.ndarray, audio: np.ndarray, audio_weight: np.ndarray, decision: dict) -> list[Cluster]:
    """Clusters of the sound, strongest first, refined by what is in view.

    Args:
        visual: (P, D) embeddings of image patches.
        audio: (Q, D) embeddings of time-frequency patches.
        audio_weight: (Q,) 0..1, how much each time-frequency patch counts (0 where nothing is heard).
        decision: thresholds, see NEUTRAL_DECISION.
    """
    gate = np.linalg.norm(audio, axis=1)
    taking_part = (gate > decision["audio_gate"]) & (audio_weight > 0)
    if not taking_part.any():
        return []
    weight = (gate * audio_weight)[taking_part]
    directions = audio[taking_part] / gate[taking_part, None]
    centroids, member = dp_means(directions, weight, decision["same_cosine"])
    share = np.bincount(member, weight, len(centroids)) / weight.sum()
    clusters = []
    for index in np.argsort(-share):
        if share[index] >= decision["smallest_share"]:
            mine = member == index
            mean_gate = float(np.average(gate[taking_part][mine], weights=weight[mine]))
            joint = refine(centroids[index], visual, decision)
            clusters.append(Cluster(joint, centroids[index], mean_gate, float(share[index])))
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


def refine(sound: np.ndarray, visual: np.ndarray, decision: dict, rounds: int = 3) -> np.ndarray:
    """Centroid of a sound together with the image patches that join it; sight and sound count equally.

    What is in view decides between concepts that the sound alone leaves open. With nothing alike in view the result is
    the sound's own centroid.
    """
    gate = np.linalg.norm(visual, axis=1)
    seen = visual[gate > decision["visual_gate"]]
    if len(seen) == 0:
        return sound
    directions = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    centroid = sound
    for _ in range(rounds):
        cosine = directions @ centroid
        joining = cosine > decision["same_cosine"]
        if not joining.any():
            return centroid
        weight = np.linalg.norm(seen[joining], axis=1) * cosine[joining]
        centroid = _mean_direction(np.stack([sound, _mean_direction(directions[joining], weight)]), np.ones(2))
    return centroid


def _mean_direction(directions: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = weight @ directions
    return mean / max(float(np.linalg.norm(mean)), 1e-9)
