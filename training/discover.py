"""What a model that was trained on clips without labels has found: prototypes of the kinds of sound in them.

Deep clustering gives every kind of sounding thing a direction of its own, but no name. Spherical k-means over the mean
sound embedding of each clip (Dhillon and Modha 2001) finds these directions; a kind is called by the label that most of
its clips carry, if the list of clips had any, else by a number.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from avssl_ros import features
from avssl_ros.localizer import audible
from training.clip_collection import ClipCollection, ClipsConfig
from training.mixing import SECONDS

LEAST_NORM = 0.3  # of a clip's mean embedding: below it the gate is shut, and the clip says nothing


def clip_embeddings(encoder: torch.nn.Module, clips: ClipCollection) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Unit vectors (N, D) of the clips in which something sounds, and their labels."""
    window, scene = int(SECONDS * features.SAMPLE_RATE), clips.scene((0,))
    vectors, labels = [], []
    for index in range(len(clips.shards)):
        power = features.mel_power(scene.sound(index)[:window])
        heard = audible(features.patch_power(power)).ravel() > 0
        with torch.no_grad():
            patches = encoder(torch.from_numpy(features.normalised_log(power))[None])[0].flatten(0, 1).numpy()
        mean = patches[heard].mean(axis=0) if heard.any() else np.zeros(patches.shape[1], np.float32)
        if np.linalg.norm(mean) > LEAST_NORM:
            vectors.append(mean / np.linalg.norm(mean))
            labels.append(clips.shards.clip(index).labels)
    return np.array(vectors, np.float32), labels


def discover(encoder: torch.nn.Module, config: ClipsConfig, kinds: int) -> tuple[list[str], np.ndarray]:
    """Names and prototypes (K, D) of at most `kinds` kinds of sound in the training clips.

    Raises:
        ValueError: where fewer than two clips sound to the model.
    """
    clips = ClipCollection(config, "train", [])
    vectors, labels = clip_embeddings(encoder, clips)
    clips.close()
    if len(vectors) < 2:
        raise ValueError(f"in {len(vectors)} of {len(clips.shards)} clips something sounds to the model, wanted are 2 "
                         "or more: train it longer")
    centres, kind_of = kmeans2(vectors, min(kinds, len(vectors) // 2 + 1), minit="++", seed=0)
    names, prototypes, taken = [], [], Counter()
    for kind in np.unique(kind_of):
        counts = Counter(label for index in np.flatnonzero(kind_of == kind) for label in labels[index])
        name = counts.most_common(1)[0][0] if counts else f"sound {len(names) + 1}"
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name} {taken[name]}")
        prototypes.append(centres[kind] / np.linalg.norm(centres[kind]))
    return names, np.array(prototypes, np.float32)
