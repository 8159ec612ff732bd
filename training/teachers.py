"""The people in panoramas and photographs, found once by a detector: they hold people whom nobody has labelled.

    python training/teachers.py --data ../shared/data --weights ../shared/weights

Writes training/people.csv: a line for each person, with the picture's file, the box as shares of its width and height
(`right` is above 1 where it crosses a panorama's seam) and the detector's score. Training takes who is surely found
in a panorama for a person, and who is doubtful for nothing (training/mixing.py); without it their patches would count
as empty background. Where people are heard, scenes of the benchmark hold no other people (training/scenes.py).

The teacher is YOLOX-nano (Ge et al. 2021, Apache-2.0; COCO), on overlapping views of 75 degrees of a panorama.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import onnxruntime
from tqdm import tqdm

from avssl_ros.geometry import ViewLayout, cut_views, direction_to_pixel, perspective_pixel_to_direction
from avssl_ros.video_input import read_image
from training.data import PEOPLE_COLUMNS, PEOPLE_CSV, Person, read_items

INPUT, STRIDES = 416, (8, 16, 32)  # of YOLOX-nano
COCO_PERSON = 0  # class
FOV_DEG, VIEWS = 75.0, 8
PADDING = 114  # grey level beside a picture that is not square
LEAST_SCORE = 0.25
LEAST_PIXELS = 20  # of a box's height in the detector's view: what is smaller is a guess
OVERLAP = 0.5  # share of the smaller box within the other from which on two boxes are one person


@dataclass(frozen=True)
class TeachersConfig:
    """Where the pictures and the detector are."""

    data: Path = Path("../shared/data")
    weights: Path = Path("../shared/weights")  # folder with yolox_nano.onnx
    output: Path = PEOPLE_CSV


class PersonDetector:
    """YOLOX-nano, its class of people."""

    def __init__(self, path: Path):
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        grids = [np.stack(np.meshgrid(*[np.arange(INPUT // stride)] * 2), -1).reshape(-1, 2) for stride in STRIDES]
        self._grid = np.concatenate(grids)
        self._stride = np.concatenate([np.full((len(grid), 1), stride) for grid, stride in zip(grids, STRIDES)])

    def __call__(self, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 4) left, top, right, bottom in pixels and scores (N,) of an RGB picture (INPUT, INPUT, 3)."""
        picture = view[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
        (found,) = self._session.run(None, {self._name: picture})[0]
        centre, size = (found[:, :2] + self._grid) * self._stride, np.exp(found[:, 2:4]) * self._stride
        score = found[:, 4] * found[:, 5 + COCO_PERSON]
        kept = (score >= LEAST_SCORE) & (size[:, 1] >= LEAST_PIXELS)
        return np.concatenate([centre - size / 2, centre + size / 2], axis=1)[kept], score[kept]


def people_in_panorama(detector: PersonDetector, panorama: np.ndarray) -> list[Person]:
    """Everybody in an equirectangular RGB picture (H, 2 H, 3), each once, the surest first."""
    layout = ViewLayout(tuple(np.arange(VIEWS) * 360 / VIEWS), 0.0, FOV_DEG, FOV_DEG)
    views = zip(cut_views(panorama, layout, (INPUT, INPUT)), layout.azimuths_deg)
    return _each_once([Person(*_on_sphere(box, azimuth), float(score))
                       for view, azimuth in views for box, score in zip(*detector(view))])


def people_in_photo(detector: PersonDetector, photo: np.ndarray) -> list[Person]:
    """Everybody in an ordinary RGB picture (H, W, 3), the surest first."""
    height, width = photo.shape[:2]
    scale = INPUT / max(height, width)
    view = np.full((INPUT, INPUT, 3), PADDING, np.uint8)
    scaled = cv2.resize(photo, (round(width * scale), round(height * scale)))
    view[: scaled.shape[0], : scaled.shape[1]] = scaled
    boxes, scores = detector(view)
    boxes = np.clip(boxes / scale / [width, height, width, height], 0.0, 1.0)
    return _each_once([Person(*map(float, box), float(score)) for box, score in zip(boxes, scores)])


def _each_once(found: list[Person]) -> list[Person]:
    kept: list[Person] = []
    for person in sorted(found, key=lambda person: -person.score):
        if all(_overlap(person, other) < OVERLAP for other in kept):
            kept.append(person)
    return kept


def _on_sphere(box: np.ndarray, azimuth_deg: float) -> tuple[float, float, float, float]:
    """A box of a view as shares of the panorama: azimuths of its sides, elevations of its ends at its middle."""
    x, y = box[[0, 2]] - 0.5, box[[1, 3]] - 0.5  # of edges, as pixels count from their centres
    sides, _ = perspective_pixel_to_direction(x, (INPUT - 1) / 2, INPUT, INPUT, FOV_DEG)
    _, ends = perspective_pixel_to_direction(x.mean(), y, INPUT, INPUT, FOV_DEG)
    left, top = (share + 0.5 for share in direction_to_pixel(sides + np.radians(azimuth_deg), ends, 1, 1))
    return float(left[0]), float(top[0]), float(left[1] + (left[1] < left[0])), float(top[1])


def _overlap(first: Person, second: Person) -> float:
    """The share of the smaller box that is within the other."""
    best = 0.0
    for turn in (-1, 0, 1):
        wide = min(first.right, second.right + turn) - max(first.left, second.left + turn)
        tall = min(first.bottom, second.bottom) - max(first.top, second.top)
        if wide > 0 and tall > 0:
            best = max(best, wide * tall / min(first.area, second.area))
    return best


def main(config: TeachersConfig) -> None:
    detector = PersonDetector(config.weights / "yolox_nano.onnx")
    with open(config.output, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(PEOPLE_COLUMNS)
        for item in tqdm([*read_items("panorama"), *read_items("photo")], unit="picture", disable=None):
            look = people_in_panorama if item.kind == "panorama" else people_in_photo
            for person in look(detector, read_image(config.data / item.file)):
                values = (f"{getattr(person, column):.4f}" for column in PEOPLE_COLUMNS[1:])
                writer.writerow((item.file, *values))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(TeachersConfig, description=__doc__))
