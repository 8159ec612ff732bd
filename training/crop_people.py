"""Photographs of people for `train.py --more-items`, cut out of pictures with boxes in YOLO's format.

    git clone https://github.com/lightly-ai/coco128_yolo coco     # 256 pictures of COCO, half of them with people
    python training/crop_people.py --pictures coco/images --labels coco/object_detection/labels \
        --source lightly-ai/coco128_yolo --output runs/more_people

Each person of a picture NAME.jpg with boxes in NAME.txt that is large enough is cut out with a margin. Writes the crops
and index.csv (kind, file, concept, group, source_repo, licence).
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from avssl_ros.video_input import read_image
from training.mixing import PERSON
from training.teachers import COCO_PERSON

COLUMNS = ("kind", "file", "concept", "group", "source_repo", "licence")
LEAST_WIDTH, LEAST_HEIGHT = 30, 80  # pixels of a box
MARGIN = 0.12  # of the box's size, on each side
SHORTER_SIDE = 200  # pixels: as small as the other photographs


@dataclass(frozen=True)
class CropConfig:
    """What to cut, and what to say of where it comes from."""

    pictures: Path
    labels: Path
    output: Path
    source: str = ""
    licence: str = "COCO: pictures of Flickr under several CC licences; research"


def crops(picture: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """The people of a picture. boxes: (N, 5) class, and centre, width and height as shares of the picture."""
    height, width = picture.shape[:2]
    found = []
    for _, x, y, w, h in boxes[boxes[:, 0] == COCO_PERSON]:
        w, h = w * width, h * height
        if w < LEAST_WIDTH or h < LEAST_HEIGHT:
            continue
        left, right = (int(np.clip(x * width + side * w * (0.5 + MARGIN), 0, width)) for side in (-1, 1))
        top, bottom = (int(np.clip(y * height + side * h * (0.5 + MARGIN), 0, height)) for side in (-1, 1))
        crop = picture[top:bottom, left:right]
        scale = SHORTER_SIDE / min(crop.shape[:2])
        found.append(cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else crop)
    return found


def main(config: CropConfig) -> int:
    """Writes crops and table; returns how many people there are. Raises FileNotFoundError where nothing is labelled."""
    pictures = {path.stem: path for path in config.pictures.glob("**/*.jpg")}
    labels = {path.stem: path for path in config.labels.glob("**/*.txt")}
    if not pictures.keys() & labels.keys():
        raise FileNotFoundError(f"no picture below {config.pictures} has a label of its name below {config.labels}")
    config.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in sorted(pictures.keys() & labels.keys()):
        boxes = np.loadtxt(labels[name], ndmin=2)
        if boxes.shape[1] != 5:
            raise ValueError(f"{labels[name]} has {boxes.shape[1]} numbers a line; wanted class, x, y, width, height")
        for number, crop in enumerate(crops(read_image(pictures[name]), boxes)):
            file = f"{name}_{number}.jpg"
            quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
            cv2.imwrite(str(config.output / file), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), quality)
            rows.append(("photo", file, PERSON, pictures[name].name, config.source, config.licence))
    with open(config.output / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    return len(rows)


if __name__ == "__main__":
    import tyro

    print(f"{main(tyro.cli(CropConfig, description=__doc__))} people")
