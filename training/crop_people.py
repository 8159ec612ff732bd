"""Photographs of people for `train.py --more-items`, cut out of pictures with boxes in YOLO's format, or without any.

    git clone https://github.com/lightly-ai/coco128_yolo coco     # 256 pictures of COCO, half of them with people
    python training/crop_people.py --pictures coco/images --labels coco/object_detection/labels \
        --source lightly-ai/coco128_yolo --output runs/more_people

    git clone https://github.com/dicky1207/dashboard_stanford40 s40     # 9,532 pictures of Stanford 40 Actions
    python training/crop_people.py --pictures s40/stanford40 --source dicky1207/dashboard_stanford40 --held-out "" \
        --licence "Stanford 40 Actions (Yao et al. 2011): research" --output runs/people \
        --quality 85 --margins 0.12 0.5 --only jumping running reading writing_on drinking smoking waving_hands \
        climbing fishing gardening holding_an_umbrella looking_through pushing_a_cart shooting_an_arrow \
        throwing_frisby pouring_liquid cutting_vegetables brushing_teeth phoning texting_message

Each person of a picture NAME.jpg with boxes in NAME.txt that is large enough is cut out with a margin, or with each of
several in turn: the wider ones show people as small parts of a picture. Without labels the detector of
training/teachers.py finds them. Writes the crops and index.csv (kind, file, concept, group, source_repo, licence).

No picture is taken that tests or validates anything: of which the shared table names the same file of the same source;
whose thumbnail is that of a test or validation photograph (dHash); in which such a photograph is found (SIFT features,
Lowe 2004, that agree on one similarity transform), since it was cut out of it. The last is looked for in photographs
whose source or licence names the set, here COCO: 80 photographs, a minute.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from tqdm import tqdm

from avssl_ros.video_input import read_image
from training.data import PERSON, Item, difference_hash, read_items
from training.teachers import COCO_PERSON, PersonDetector, people_in_photo

COLUMNS = ("kind", "file", "concept", "group", "source_repo", "licence")
LEAST_WIDTH, LEAST_HEIGHT = 30, 80  # pixels of a box
LEAST_SCORE = 0.5  # of a detection
ALIKE = 5  # bits of 64 in which the dHash of two copies of a picture differ at most
SHORTER_SIDE = 200  # pixels: as small as the other photographs
FEATURES, RATIO, AGREEING = 600, 0.7, 8  # SIFT features of a picture; Lowe's ratio; places that tell the same picture


@dataclass(frozen=True)
class CropConfig:
    """What to cut, and what to say of where it comes from."""

    pictures: Path
    output: Path
    labels: Path | None = None  # folder with NAME.txt; None: a detector looks for people
    only: tuple[str, ...] = ()  # how the names of pictures begin that are taken; none given: all
    margins: tuple[float, ...] = (0.12,)  # of the box's size, on each side; one after the other
    quality: int = 92  # of the JPEG files
    data: Path = Path("../shared/data")  # folder with photos/, of which test and validation are looked for
    weights: Path = Path("../shared/weights")  # folder with yolox_nano.onnx, for pictures without labels
    held_out: str = "COCO"  # what source or licence of those name that are looked for within pictures; "": none
    source: str = ""
    licence: str = "COCO: pictures of Flickr under several CC licences; research"


def labelled_people(path: Path) -> np.ndarray:
    """Boxes (N, 4) of the people in a file of YOLO's format: centre, width and height as shares of the picture."""
    boxes = np.loadtxt(path, ndmin=2)
    if boxes.shape[1] != 5:
        raise ValueError(f"{path} has {boxes.shape[1]} numbers a line; wanted class, x, y, width, height")
    return boxes[boxes[:, 0] == COCO_PERSON, 1:]


def detected_people(detector: PersonDetector, picture: np.ndarray) -> np.ndarray:
    """The same, of whom a detector is sure in an RGB picture."""
    boxes = [((person.left + person.right) / 2, (person.top + person.bottom) / 2,
              person.right - person.left, person.bottom - person.top)
             for person in people_in_photo(detector, picture) if person.score >= LEAST_SCORE]  # fmt: skip
    return np.array(boxes).reshape(-1, 4)


def crops(picture: np.ndarray, boxes: np.ndarray, margin: Callable[[], float]) -> list[np.ndarray]:
    """The people of a picture. boxes: (N, 4), see labelled_people. margin: gives that of the next crop."""
    height, width = picture.shape[:2]
    found = []
    for x, y, w, h in boxes:
        w, h = w * width, h * height
        if w < LEAST_WIDTH or h < LEAST_HEIGHT:
            continue
        reach = 0.5 + margin()
        left, right = (int(np.clip(x * width + side * w * reach, 0, width)) for side in (-1, 1))
        top, bottom = (int(np.clip(y * height + side * h * reach, 0, height)) for side in (-1, 1))
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


def copies(pictures: list[Path], held_out: list[Item], data: Path, source: str) -> set[Path]:
    """Those of the pictures that are held-out photographs themselves, by their names or by how they look."""
    with open(data / "photos" / "index.csv", newline="", encoding="utf-8") as file:
        path_of = {f"photos/{row['file']}": row["source_path"] for row in csv.DictReader(file)
                   if row["source_repo"] == source}  # fmt: skip
    names = {Path(path_of[item.file]).name for item in held_out if item.file in path_of}
    theirs, found = [difference_hash(data / item.file) for item in held_out], set()
    for path in tqdm(pictures, "copies of test photographs", unit="picture"):
        mine = difference_hash(path)
        if path.name in names or any((mine ^ other).bit_count() <= ALIKE for other in theirs):
            found.add(path)
    return found


def chosen_pictures(config: CropConfig) -> list[Path]:
    """The pictures to cut people out of, by name. Raises FileNotFoundError where there are none."""
    pictures = {path.stem: path for path in config.pictures.glob("**/*.jpg")
                if path.name.startswith(config.only or "")}  # fmt: skip
    if not pictures:
        raise FileNotFoundError(f"no .jpg below {config.pictures}, or none whose name begins as --only {config.only}")
    if config.labels is not None:
        labelled = {path.stem for path in config.labels.glob("**/*.txt")}
        pictures = {name: path for name, path in pictures.items() if name in labelled}
        if not pictures:
            raise FileNotFoundError(f"no picture below {config.pictures} has a label of its name below {config.labels}")
    held_out = [item for item in read_items("photo") if item.split != "train"]
    named = [config.data / item.file for item in held_out
             if config.held_out and config.held_out.lower() in (item.source + item.licence).lower()]  # fmt: skip
    paths = [pictures[name] for name in sorted(pictures)]
    left_out = copies(paths, held_out, config.data, config.source)
    left_out |= show_held_out(paths, named) if named else set()
    return [path for path in paths if path not in left_out]


def finder(config: CropConfig) -> Callable[[Path, np.ndarray], np.ndarray]:
    """What gives the boxes, see labelled_people, of a picture's file and its pixels."""
    if config.labels is None:
        detector = PersonDetector(config.weights / "yolox_nano.onnx")
        return lambda path, picture: detected_people(detector, picture)
    labels = {path.stem: path for path in config.labels.glob("**/*.txt")}
    return lambda path, picture: labelled_people(labels[path.stem])


def main(config: CropConfig) -> int:
    """Writes crops and table; returns how many people there are. Raises FileNotFoundError, see chosen_pictures."""
    find, rows, margins = finder(config), [], itertools.cycle(config.margins)
    paths = chosen_pictures(config)
    config.output.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, "people", unit="picture"):
        picture = read_image(path)
        for number, crop in enumerate(crops(picture, find(path, picture), margins.__next__)):
            file = f"{path.stem}_{number}.jpg"
            quality = [cv2.IMWRITE_JPEG_QUALITY, config.quality]
            cv2.imwrite(str(config.output / file), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), quality)
            rows.append(("photo", file, PERSON, path.name, config.source, config.licence))
    with open(config.output / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    return len(rows)


if __name__ == "__main__":
    import tyro

    print(f"{main(tyro.cli(CropConfig, description=__doc__))} people")
