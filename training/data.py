"""What there is to train on: the concept table, the index of photos, recordings and panoramas, and the split by item.

`python -m training.data ../shared/data` writes training/splits.csv, which training, calibration and the benchmark all
read. An item is a photograph, a recording or a place; windows of one recording, near-duplicate photographs and
panoramas of one venue stay in one split. The list that is there was made before photographs that only a third one joins
were one group: made anew, seven would move.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HERE = Path(__file__).parent
CONCEPTS_CSV = HERE / "concepts.csv"
SPLITS_CSV = HERE / "splits.csv"
PEOPLE_CSV = HERE / "people.csv"
PEOPLE_COLUMNS = ("file", "left", "top", "right", "bottom", "score")
NAMES_ELSEWHERE = ("audioset", "vggsound", "audioset_mid")  # columns: what lists of web video call the concepts
BACKGROUND = "background"
PERSON = "person"  # the concept of people found in a picture

# The classifier that training starts from has seen photographs of ImageNet, and the renderings and single notes of one
# instrument sound alike: none of them may test anything.
TRAIN_ONLY = ("images", "thunderInfy/imagenette", "pomatokyo/mini-imagenet", "ajschumacher/imagen",
              "debian:fluid-soundfont-gm", "skratchdot/philharmonia-samples")
# Kept out of training whole, so that a demo and a test on them show material of a kind that was never seen.
TEST_ONLY = ("debian:tuxpaint-stamps-default", "@pmndrs/assets")
# Of ImageNet's classes that no concept has: those that show people in what they wear, and those that sound or look like
# something that does, of which nothing is said. All others show what does not sound.
IMAGENET_PEOPLE = "399|400|433|439|490|501|515|560|578|601|614|617|639|652|667|691|697|715|775|793|841|887|903|906|982"
IMAGENET_UNTOLD = (
    "2-4|9|101|127-146|149-150|300-307|319-326|342-347|383-388|403|405|408|435|442|469-470|475-476|479|481|484-485|497|"
    "517|521|527|531|536-537|540|542|544-545|548|550|561-562|565|567|573|575-576|586|590|595|597-598|603|605|607|612|"
    "620|622|625-627|634|644|650-651|657|661|664|673|681|684|688|690|693-694|705|713|726|730|742|744-745|754|757|766|"
    "782|786|794|802-803|810|812|816|819|826-827|833|835|847|854|856|859|866|870|876|880|902|908-909|913|980"
)
SHARES = {"photo": (0.15, 0.10), "sound": (0.20, 0.10), "panorama": (0.15, 0.10)}  # test, validation


@dataclass(frozen=True)
class Concept:
    """One row of concepts.csv: what a sounding thing is called in each of the collections.

    `made_by` are other concepts that are seen where this one is heard: people, for a crowd's murmur.
    """

    name: str
    label: str
    photos: tuple[str, ...]
    sounds: tuple[str, ...]
    esc10: tuple[str, ...]
    imagenet: tuple[int, ...]
    audioset: tuple[str, ...]
    vggsound: tuple[str, ...]
    audioset_mid: tuple[str, ...]
    made_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One photograph, recording or panorama. `also` are other concepts to be seen in the same photograph."""

    kind: str
    file: str
    concept: str
    also: tuple[str, ...]
    split: str
    group: str
    source: str
    licence: str


@dataclass(frozen=True)
class Person:
    """A box in a picture, in shares of its width and height, and how sure the detector is."""

    left: float
    top: float
    right: float
    bottom: float
    score: float

    @property
    def area(self) -> float:
        """Share of the picture."""
        return (self.right - self.left) * (self.bottom - self.top)


def read_concepts(path: Path = CONCEPTS_CSV) -> list[Concept]:
    """Concepts in the order of their class ids."""
    def names(text: str) -> tuple[str, ...]:
        return tuple(part for part in text.split("|") if part)

    with open(path, newline="") as file:
        return [Concept(row["concept"], row["label"], names(row["photos"]), names(row["sounds"]), names(row["esc10"]),
                        _indices(row["imagenet"]), *(names(row[column]) for column in (*NAMES_ELSEWHERE, "made_by")))
                for row in csv.DictReader(file)]


def _indices(text: str) -> tuple[int, ...]:
    """Of "1|4-6": 1, 4, 5, 6."""
    spans = [part.split("-") for part in text.split("|") if part]
    return tuple(index for span in spans for index in range(int(span[0]), int(span[-1]) + 1))


def read_items(kind: str | None = None, split: str | None = None, path: Path = SPLITS_CSV) -> list[Item]:
    """The rows of splits.csv, of one kind and split where given."""
    with open(path, newline="") as file:
        items = [Item(**{**row, "also": tuple(filter(None, row["also"].split("|")))}) for row in csv.DictReader(file)]
    return [item for item in items if kind in (None, item.kind) and split in (None, item.split)]


def read_people(path: Path = PEOPLE_CSV) -> dict[str, list[Person]]:
    """People by the picture's file."""
    found = defaultdict(list)
    for row in _rows(path):
        found[row["file"]].append(Person(*(float(row[column]) for column in PEOPLE_COLUMNS[1:])))
    return dict(found)


HEAD = 0.3  # of the height of somebody: head and shoulders, above what is held or worked with


def head_of(person: Person) -> Person:
    """The upper part of somebody."""
    return replace(person, bottom=person.top + HEAD * (person.bottom - person.top))


def people_mask(people: list[Person], height: int, width: int) -> np.ndarray:
    """uint8 (height, width) of how sure it is that a pixel is of a person: the highest score there, of 255."""
    mask = np.zeros((height, width), np.uint8)
    for person in sorted(people, key=lambda person: person.score):
        columns = np.arange(round(person.left * width), round(person.right * width)) % width
        mask[round(person.top * height) : round(person.bottom * height), columns] = round(person.score * 255)
    return mask


def read_more_items(folder: Path) -> list[Item]:
    """Further recordings and photographs to train on: the rows of `folder`/index.csv, all of the train split.

    Its columns are file (within the folder), concept (of concepts.csv, or "background"), kind ("sound" where it is left
    out, or "photo") and, for the model card, source_repo and licence. Raises FileNotFoundError without the table,
    ValueError where a concept or a kind is unknown.
    """
    table, known = folder / "index.csv", {concept.name for concept in read_concepts()} | {BACKGROUND}
    if not table.exists():
        raise FileNotFoundError(f"{table} is missing: wanted is a table of further items, columns file and concept")
    rows = _rows(table)
    for unknown, what in ((sorted({row["concept"] for row in rows} - known), f"concepts that {CONCEPTS_CSV} has not"),
                          (sorted({row.get("kind", "sound") for row in rows} - {"sound", "photo"}),
                           "kinds other than sound and photo")):  # fmt: skip
        if unknown:
            raise ValueError(f"{table} names {what}: {unknown}")
    return [Item(row.get("kind", "sound"), str((folder / row["file"]).resolve()), row["concept"], (), "train",
                 row.get("group", row["file"]), row.get("source_repo", ""), row.get("licence", "")) for row in rows]


def _rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _photos(root: Path, concepts: list[Concept]) -> list[dict]:
    concept_of = {folder: concept.name for concept in concepts for folder in concept.photos} | {BACKGROUND: BACKGROUND}
    rows_of = defaultdict(list)
    for row in _rows(root / "photos" / "index.csv"):
        rows_of[row["file"]].append(row)
    found = []
    for file, rows in rows_of.items():
        concept = concept_of.get(file.split("/")[0], "")
        also = {concept_of.get(row["concept"], "") for row in rows} - {concept, ""}
        found.append({"kind": "photo", "file": f"photos/{file}", "concept": concept, "also": sorted(also),
                      "source": rows[0]["source_repo"], "licence": rows[0]["licence"]})
    class_of = dict.fromkeys(_indices(IMAGENET_UNTOLD), "") | dict.fromkeys(_indices(IMAGENET_PEOPLE), PERSON)
    class_of |= {index: concept.name for concept in concepts for index in concept.imagenet}
    for index, path in enumerate(sorted((root / "images").glob("n*.jpg"))):
        found.append({"kind": "photo", "file": f"images/{path.name}", "concept": class_of.get(index, BACKGROUND),
                      "also": [], "source": "images", "licence": "ImageNet terms, research"})
    return found


def _sounds(root: Path, concepts: list[Concept]) -> list[dict]:
    concept_of = {folder: concept.name for concept in concepts for folder in concept.sounds}
    esc_of = {folder: concept.name for concept in concepts for folder in concept.esc10}
    found = []
    for row in _rows(root / "sounds" / "index.csv"):
        background = row["concept"].startswith("background/")
        concept = BACKGROUND if background else concept_of.get(row["concept"], "")
        found.append({"kind": "sound", "file": f"sounds/{row['file']}", "concept": concept, "also": [],
                      "source": row["source_repo"], "licence": row["licence"],
                      "group": f"{row['source_repo']}/{row['source_path']}"})
    for path in sorted((root / "esc10").glob("*/*")):
        concept = esc_of.get(path.parent.name, BACKGROUND)  # rain and sea waves come from no object
        found.append({"kind": "sound", "file": f"esc10/{path.parent.name}/{path.name}", "concept": concept, "also": [],
                      "source": "karolpiczak/ESC-10", "licence": "CC BY 3.0",
                      "group": f"esc/{path.stem.split('-')[1]}"})
    return found


def _panoramas(root: Path) -> list[dict]:
    return [{"kind": "panorama", "file": f"panoramas/{row['file']}", "concept": BACKGROUND, "also": [],
             "source": "@pmndrs/assets" if row["venue_group"].startswith("ph_") else row["source_repo"],
             "licence": row["licence as stated"], "group": row["venue_group"]}
            for row in _rows(root / "panoramas" / "index.csv")]


def difference_hash(path: Path) -> int:
    """64-bit dHash of a picture: which of neighbouring pixels of a 9 x 8 thumbnail is brighter."""
    thumbnail = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (9, 8), interpolation=cv2.INTER_AREA)
    return int("".join("1" if bit else "0" for bit in (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()), 2)


def _group_near_duplicates(root: Path, rows: list[dict], distance: int = 5) -> None:
    """Gives photographs whose dHash differs in at most `distance` bits one group, and those joined by others of it."""
    hashes = np.array([difference_hash(root / row["file"]) for row in rows], dtype=np.uint64)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    same = [index + np.flatnonzero((bits[index:] != bits[index]).sum(axis=1) <= distance) for index in range(len(rows))]
    pairs = np.repeat(np.arange(len(rows)), [len(found) for found in same]), np.concatenate(same)
    _, components = connected_components(coo_array((np.ones(len(pairs[0])), pairs), shape=(len(rows),) * 2), False)
    first: dict[int, str] = {}
    for row, component in zip(rows, components):
        row["group"] = first.setdefault(component, row["file"])


def assign_splits(rows: list[dict]) -> None:
    """Splits the groups of each concept by the order of their hashes, so that new items do not move old ones far."""
    pinned = {row["group"]: "train" for row in rows if row["source"] in TRAIN_ONLY}
    pinned |= {row["group"]: "test" for row in rows if row["source"] in TEST_ONLY}
    groups = defaultdict(dict)
    for row in rows:
        groups[row["kind"], row["concept"]][row["group"]] = hashlib.sha256(row["group"].encode()).hexdigest()
    taken = {}
    for (kind, _), hashes in groups.items():
        free = [group for group in sorted(hashes, key=hashes.get) if group not in pinned and group not in taken]
        tests, validations = (int(np.ceil(share * len(free))) if len(free) >= 4 else 0 for share in SHARES[kind])
        for position, group in enumerate(free):
            in_test, in_validation = position < tests, position < tests + validations
            taken[group] = "test" if in_test else "validation" if in_validation else "train"
    for row in rows:
        row["split"] = pinned.get(row["group"]) or taken[row["group"]]


def write_index(root: Path, path: Path = SPLITS_CSV) -> list[Item]:
    """Indexes the collections under `root` and writes the split list."""
    concepts = read_concepts()
    photos = _photos(root, concepts)
    _group_near_duplicates(root, photos)
    rows = photos + _sounds(root, concepts) + _panoramas(root)
    assign_splits(rows)
    names = list(Item.__dataclass_fields__)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**{name: row[name] for name in names}, "also": "|".join(row["also"])})
    return read_items(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with photos/, images/, sounds/, esc10/ and panoramas/")
    items = write_index(parser.parse_args().root)
    for kind in SHARES:
        count = {split: sum(item.kind == kind and item.split == split for item in items)
                 for split in ("train", "validation", "test")}
        print(kind, count)


if __name__ == "__main__":
    main()
