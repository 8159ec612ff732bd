"""What a model that was trained on clips without labels has found: prototypes of the kinds of sound in them.

Deep clustering gives every kind of sounding thing a direction of its own, but no name. Spherical k-means over the mean
sound embedding of each clip (Dhillon and Modha 2001) finds these directions; a kind is called by the label that most of
its clips carry, if the list of clips had any, else by a number.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from tqdm import trange

from avssl_ros import features
from avssl_ros.localizer import audible
from training.clip_collection import ClipCollection, ClipsConfig
from training.mixing import SECONDS
from training.pack import DamagedClip

LEAST_NORM = 0.3  # of a clip's mean embedding: below it the gate is shut, and the clip says nothing


def clip_embeddings(encoder: torch.nn.Module, clips: ClipCollection) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Unit vectors (N, D) of the clips in which something sounds, and their labels; damaged clips are left out."""
    vectors, labels = [], []
    for index in trange(len(clips.shards), unit="clip", mininterval=5.0):
        with suppress(DamagedClip):  # the collection has warned of it
            sound = clips.scene((0,)).sound(index)  # a scene keeps its windows: one for all clips would keep them all
            mean = _mean_embedding(encoder, sound[:int(SECONDS * features.SAMPLE_RATE)])
            if np.linalg.norm(mean) > LEAST_NORM:
                vectors.append(mean / np.linalg.norm(mean))
                labels.append(clips.shards.clip(index).labels)
    return np.array(vectors, np.float32), labels


def _mean_embedding(encoder: torch.nn.Module, sound: np.ndarray) -> np.ndarray:
    """(D,) of the patches in which something is heard; zero where nothing is."""
    power = features.mel_power(sound)
    heard = audible(features.patch_power(power)).ravel() > 0
    with torch.no_grad():
        patches = encoder(torch.from_numpy(features.normalised_log(power))[None])[0].flatten(0, 1).numpy()
    return patches[heard].mean(axis=0) if heard.any() else np.zeros(patches.shape[1], np.float32)


def discover(encoder: torch.nn.Module, config: ClipsConfig, kinds: int) -> tuple[list[str], np.ndarray]:
    """Names and prototypes (K, D) of at most `kinds` kinds of sound in the training clips.

    Raises:
        ValueError: where fewer than two clips sound to the model.
    """
    clips = ClipCollection(replace(config, keep="off"), "train", [])  # each is read once: nothing to cache
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
