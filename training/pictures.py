"""One picture of what the encoders make of a training scene: for TensorBoard, and for a person who tunes a run.

A row for each view: the view; the map of the scene's first sound on it; its patch embeddings in colours, the first
three principal components of all patches that are open as red, green and blue; who owns the patches in truth.
"""

from __future__ import annotations

import cv2
import numpy as np

from avssl_ros.overlay import source_color
from training.losses import BACKGROUND

TILE = 168  # pixels


def scene_picture(scene: dict, visual: np.ndarray, audio: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """RGB uint8 (V * TILE, 4 * TILE, 3).

    Args:
        scene: one scene as SceneMixer makes it.
        visual: (V, P, D) and audio: (M, Q, D), embeddings of its patches. frame: (C, D) prototypes.
    """
    views, patches, _ = visual.shape
    side = int(np.sqrt(patches))
    heard = next((m for m, concepts in enumerate(scene["sound_concept"]) if (concepts >= 0).any()), 0)
    mine = scene["sound_owner"][heard].ravel() == 0
    centroid = audio[heard][mine].mean(axis=0) if mine.any() else audio[heard].mean(axis=0)
    direction = centroid / max(float(np.linalg.norm(centroid)), 1e-6)
    maps = np.clip(visual @ direction, 0, 1).reshape(views, side, side)
    colours = embedding_colours(visual.reshape(-1, visual.shape[-1])).reshape(views, side, side, 3)
    rows = []
    parts = zip(scene["views"], maps, colours, scene["view_owner"], scene["view_concept"])
    for view, value, colour, owner, concept in parts:
        tiles = [_tile(view), _heat(_tile(view), value), _tile(colour), _tile(_owner_colours(owner, concept))]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)


def embedding_colours(patches: np.ndarray) -> np.ndarray:
    """RGB uint8 (N, 3) of embeddings (N, D): the direction as a colour, the gate as its brightness."""
    gate = np.linalg.norm(patches, axis=1)
    open_ones = patches[gate > 0.3] if (gate > 0.3).sum() >= 3 else patches
    mean = open_ones.mean(axis=0)
    axes = np.linalg.svd(open_ones - mean, full_matrices=False)[2][:3]
    spread = np.abs((open_ones - mean) @ axes.T).max() + 1e-6
    colour = 0.5 + 0.5 * (patches - mean) @ axes.T / spread
    return (255 * np.clip(colour, 0, 1) * np.clip(gate, 0, 1)[:, None]).astype(np.uint8)


def _owner_colours(owner: np.ndarray, concept: np.ndarray) -> np.ndarray:
    picture = np.full((*owner.shape, 3), 90, np.uint8)  # grey: nobody knows
    picture[owner == BACKGROUND] = 0
    for index, class_id in enumerate(concept):
        picture[owner == index] = source_color(int(class_id))
    return picture


def _tile(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (TILE, TILE), interpolation=cv2.INTER_NEAREST if len(picture) < TILE else cv2.INTER_AREA)


def _heat(tile: np.ndarray, values: np.ndarray) -> np.ndarray:
    level = cv2.resize(values.astype(np.float32), (TILE, TILE))
    heat = cv2.cvtColor(cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return (tile * (1 - 0.7 * level[..., None]) + heat * 0.7 * level[..., None]).astype(np.uint8)
