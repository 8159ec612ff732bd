"""Photographs of people for `train.py --more-items`, cut out of pictures with boxes in YOLO's format.

    git clone https://github.com/lightly-ai/coco128_yolo coco     # 256 pictures of COCO, half of them with people
    python training/crop_people.py --pictures coco/images --labels coco/object_detection/labels \
        --source lightly-ai/coco128_yolo --output runs/more_people

Each person of a picture NAME.jpg with boxes in NAME.txt that is large enough is cut out with a margin. Writes the crops
and index.csv (kind, file, concept, group, source_repo, licence).

Pictures are left out in which a test or validation photograph of the shared material is found (SIFT features, Lowe
2004, that agree on one similarity transform): it was cut out of them. Looked for are those whose source or licence
names the set, here COCO: 80 photographs, a minute.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from tqdm import tqdm

from avssl_ros.video_input import read_image
from training.data import PERSON, read_items
from training.teachers import COCO_PERSON

COLUMNS = ("kind", "file", "concept", "group", "source_repo", "licence")
LEAST_WIDTH, LEAST_HEIGHT = 30, 80  # pixels of a box
MARGIN = 0.12  # of the box's size, on each side
SHORTER_SIDE = 200  # pixels: as small as the other photographs
FEATURES, RATIO, AGREEING = 600, 0.7, 8  # SIFT features of a picture; Lowe's ratio; places that tell the same picture


@dataclass(frozen=True)
class CropConfig:
    """What to cut, and what to say of where it comes from."""

    pictures: Path
    labels: Path
    output: Path
    data: Path = Path("../shared/data")  # folder with photos/, of which test and validation are looked for
    held_out: str = "COCO"  # what source or licence of those name
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


class Sift:
    """Whether one picture was cut out of another."""

    def __init__(self):
        self._detector, self._matcher = cv2.SIFT_create(FEATURES), cv2.BFMatcher()

    def features(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions (N, 2) and descriptors (N, 128) of an RGB picture; None where there are none."""
        keypoints, descriptors = self._detector.detectAndCompute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), None)
        return np.float32([keypoint.pt for keypoint in keypoints]), descriptors

    def is_within(self, crop: tuple, whole: tuple) -> bool:
        """Whether `crop` was cut out of `whole`, at any scale and turn; both as of `features`."""
        if crop[1] is None or whole[1] is None or len(whole[1]) < 2:
            return False
        pairs = [first for first, second in self._matcher.knnMatch(crop[1], whole[1], k=2)
                 if first.distance < RATIO * second.distance]  # fmt: skip
        if len(pairs) < AGREEING:
            return False
        there = whole[0][[pair.trainIdx for pair in pairs]]
        _, agree = cv2.estimateAffinePartial2D(crop[0][[pair.queryIdx for pair in pairs]], there)
        # Places, not matches: everything agrees on a transform that shrinks the whole crop to one point.
        return agree is not None and len(np.unique(np.round(there[agree.ravel() > 0]), axis=0)) >= AGREEING


def show_held_out(pictures: list[Path], held_out: list[Path]) -> set[Path]:
    """Those of the pictures in which a held-out photograph is found."""
    sift = Sift()
    photographs, found = [sift.features(read_image(path)) for path in held_out], set()
    for path in tqdm(pictures, "test photographs in them", unit="picture"):
        whole = sift.features(read_image(path))
        if any(sift.is_within(photograph, whole) for photograph in photographs):
            found.add(path)
    return found


def main(config: CropConfig) -> int:
    """Writes crops and table; returns how many people there are. Raises FileNotFoundError where nothing is labelled."""
    pictures = {path.stem: path for path in config.pictures.glob("**/*.jpg")}
    labels = {path.stem: path for path in config.labels.glob("**/*.txt")}
    if not pictures.keys() & labels.keys():
        raise FileNotFoundError(f"no picture below {config.pictures} has a label of its name below {config.labels}")
    names = sorted(pictures.keys() & labels.keys())
    held_out = [config.data / item.file for item in read_items("photo")
                if item.split != "train" and config.held_out.lower() in (item.source + item.licence).lower()]
    left_out = show_held_out([pictures[name] for name in names], held_out)
    names = [name for name in names if pictures[name] not in left_out]
    config.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
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
