"""Builds a small audio-visual corpus from what anyone can install, to try the pipeline from clips to a model.

The clips are COMPOSITED: a real photograph of a sounding thing is moved slowly over a real panorama or photograph, with
a real recording of the same kind of thing. What is seen and what is heard were never in one place, and nothing in the
picture moves with the sound. So the corpus tries prepare.py, pack.py and train.py; it is no substitute for web video,
and figures measured on it say nothing about real scenes. Only the clips of ../shared/data/clips are real video.

    python training/corpus.py --output runs/small/corpus                  # the same again: goes on
    python training/corpus.py --output runs/smoke/corpus --clips 120
    python training/prepare.py --collected runs/small/corpus/collected.csv --output runs/small/prepared

Material, each kind optional: Debian's tuxpaint-stamps-default (cut-out photographs, many with a recording), npm's
@pmndrs/assets or else Debian's blender-data (panoramas), all fetched without root into `downloads` where they are not
installed; folders of equirectangular pictures of your own (`panoramas`); and ../shared/data with the splits of
training/splits.csv. Beside it the packages are test material, as data.py has it; alone they are divided into splits,
and then shipped demo scenes, which show them too, test nothing.

Writes into the output folder: composited/<id>.mp4; collected.csv, the table that prepare.py takes, with the recording
as a clip's source and its concept as its label; SOURCES.csv, origin and licence of every item used; journal.jsonl, of
what each clip was made. Clip i, up to what x264 makes of it, is a function of the material, the seed and i:
more clips leave the others as they are.
"""

from __future__ import annotations

import base64
import csv
import errno
import fnmatch
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import cv2
import numpy as np

from avssl_ros import features
from avssl_ros.audio_input import read_audio
from avssl_ros.geometry import ViewLayout, cut_views
from training.clips import encode_mp4
from training.collect import COLUMNS, Journal, run_parallel, write_table
from training.data import BACKGROUND, Item, assign_splits, read_items
from training.mixing import (
    at_level,
    at_speed,
    covering,
    excerpt,
    feathered_alpha,
    jitter,
    paste,
    pink_noise,
    reverberant,
)
from training.prepare import choose_splits

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = 1  # changes whenever another clip comes of the same material, seed and index: clips are made anew
SPLITS = ("train", "validation", "test")
SOURCES = ("kind", "file", "concept", "split", "source", "licence", "clips")
PARTS = ("photo", "sound", "place", "noise")
MARGIN = 1.3  # of the background beyond the frame: room for the camera to turn
FULL_FRAME = 0.15  # share of clips in which a photograph with its own background fills the frame
QUIET_DB = -45.0  # of full scale: recordings whose loudest 100 ms are below it are left out

STAMPS, STAMPS_FOLDER = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
BLENDER, BLENDER_FOLDER = "blender-data", "usr/share/blender/datafiles/studiolights/world"
ASSETS = "pmndrs-assets-1.7.0.tgz"  # as `npm pack @pmndrs/assets@1.7.0` names it
ASSETS_URL = "https://registry.npmjs.org/@pmndrs/assets/-/assets-1.7.0.tgz"
ASSETS_SHA512 = "zHmKNS+3Jvu9K3zJBQfYQKT9Pn9IQt8s0q/eJC3CXKpWpyg6IBa+ivN9NgDn+fDT2AVjUh2YRZ//GXUueuAdCg=="

# Concept of a stamp by its path; the first pattern that fits counts, and what fits none is left out.
STAMP_CONCEPTS = (
    ("*/cartoon/*", ""), ("*/toys/*", ""), ("*_mirror.*", ""), ("*/insects/bee.png", ""),  # drawings, toys, copies
    ("*/insects/Brown_slug.*", ""), ("*/insects/Woodlouse.*", ""), ("animals/amphibians/frog*", "frog"),
    ("animals/birds/hen.*", "chicken"), ("animals/birds/rooster.*", "chicken"), ("animals/birds/chicken*", "chicken"),
    ("animals/birds/turkey.*", "chicken"), ("animals/birds/drake.*", "duck_goose"),
    ("animals/birds/duck.*", "duck_goose"), ("animals/birds/gander.*", "duck_goose"), ("animals/birds/*", "bird"),
    ("animals/insects/*", "insect"), ("animals/mammals/apes/*", "monkey"), ("*/aquatic/dolphin.*", "dolphin"),
    ("*/aquatic/orca.*", "dolphin"), ("*/aquatic/whale.*", "dolphin"), ("animals/mammals/bears/*", "bear"),
    ("*/bovines/goat.*", "sheep"), ("*/bovines/mountaingoat.*", "sheep"), ("*/bovines/ram.*", "sheep"),
    ("*/bovines/sheep*", "sheep"), ("*/bovines/bison.*", "cow"), ("*/bovines/bull.*", "cow"),
    ("*/bovines/cow*", "cow"), ("*/bovines/yak.*", "cow"), ("*/bovines/zebu.*", "cow"), ("*/camel/*", "llama"),
    ("animals/mammals/cats/*", "big_cat"), ("animals/mammals/deer/*", "deer"), ("*/dogs/dog.*", "dog"),
    ("*/dogs/dingo.*", "wolf"), ("*/dogs/fox.*", "wolf"), ("animals/mammals/elephant.*", "elephant"),
    ("*/equines/zebra.*", "zebra"), ("*/equines/*", "horse"), ("animals/mammals/pig*", "pig"),
    ("animals/mammals/wildboar.*", "pig"), ("animals/marsupials/kangaroo.*", "kangaroo"),
    ("hobbies/camera_35mm.*", "camera"), ("hobbies/music/percussion/*", "drums"), ("*/string/cello.*", "cello"),
    ("*/string/guitar*", "guitar"), ("*/string/violin.*", "violin"), ("*/wind/bassoon.*", "clarinet"),
    ("*/brass/trumpet.*", "trumpet"), ("military/final-roll-call.ogg", "trumpet"), ("household/kettle.*", "cooking"),
    ("household/toilet.*", "toilet"), ("household/vacuum_cleaner.*", "vacuum_cleaner"),
    ("household/Washing-machine.*", "washing_machine"), ("household/tools/hammer.*", "hammer"),
    ("household/tools/mallet_metal.*", "hammer"), ("household/tools/saw.*", "chainsaw"),
    ("vehicles/auto/truck.*", "bus_truck"), ("vehicles/auto/*", "car"), ("vehicles/race/*", "car"),
    ("vehicles/garbagetruck.*", "bus_truck"), ("vehicles/masstransit/*", "bus_truck"),
    ("vehicles/emergency/firetruck.*", "siren"), ("vehicles/flight/planes/*", "aeroplane"),
    ("military/vehicles/f22_raptor.*", "aeroplane"), ("vehicles/ship/*", "boat"),
    ("seasonal/newyears/fireworks.ogg", "fireworks"),
)  # fmt: skip
# Concepts of a real clip by the words that say what sounds in it; one that is doubtful, or none of ours, has no label.
DOUBTFUL = r"robot|stage performer|skateboard|pancake|cables|street ambience|drone"
HEARD = (
    (r"\b(cough|speaking|lecturing|talking|debating|singing(?<!bird singing))", "person"), (r"\bbaby\b", "child"),
    (r"\bbarking", "dog"), (r"\bbird\b", "bird"), (r"\bdrum", "drums"), (r"\bguitar", "guitar"), (r"\bpiano", "piano"),
    (r"\bflute", "flute"), (r"\b(gun|rifle)\b", "gun"), (r"\bhammer\b", "hammer"), (r"\b(cars|traffic)\b", "car"),
    (r"\btelephone", "telephone"),
)  # fmt: skip


@dataclass(frozen=True)
class CorpusConfig:
    """What to compose, of what, and where to."""

    output: Path
    data: Path = REPOSITORY.parent / "shared" / "data"  # folder that training/splits.csv indexes; need not be there
    clips: int = 1200  # composited ones; the real ones come on top
    panoramas: tuple[Path, ...] = ()  # folders of equirectangular pictures; those of one sub-folder are of one split
    downloads: Path = REPOSITORY / "runs" / "packages"  # packages are fetched into it, once
    fetch: bool = True  # packages that are neither installed nor in `downloads`
    seconds: float = 4.0
    fps: int = 15
    side: int = 256  # pixels, the shorter one; the other is a third longer
    validation_share: float = 0.1  # of the composited clips
    test_share: float = 0.1
    seed: int = 0
    workers: int = len(os.sched_getaffinity(0))  # of the cores those that a job may use

    def __post_init__(self):
        shares = (self.validation_share, self.test_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"validation_share and test_share are {shares}; wanted is 0 to 1, together at most 1")
        if self.clips < 0 or self.seconds < 1 or self.fps < 1 or self.side < 32 or self.side % 2 or self.workers < 1:
            raise ValueError(f"clips must be >= 0, seconds, fps and workers >= 1, side even and >= 32; got {self}")


class Missing(Exception):
    """Material that is not there; the text says what to do."""


@dataclass(frozen=True)
class Material:
    """A photograph, recording or panorama, and where it lies on this machine."""

    item: Item
    path: Path


@dataclass(frozen=True)
class Recipe:
    """What one clip is made of; `noise` is a recording of background, or None."""

    id: str
    index: int
    split: str
    photo: Material
    sound: Material
    place: Material
    noise: Material | None

    @property
    def concept(self) -> str:
        return self.sound.item.concept

    def materials(self) -> list[Material]:
        return [part for part in (self.photo, self.sound, self.place, self.noise) if part is not None]


@dataclass(frozen=True)
class Result:
    """Rows of collected.csv with their "origin", what became of the composited clips, and what material was missing."""

    rows: list[dict]
    counts: Counter
    found: list[str]
    missing: list[str]


# ------------------------------------------------------------------------------------------------------------ material


@contextmanager
def _download(config: CorpusConfig, name: str) -> Iterator[Path]:
    """A new folder that becomes downloads/<name> when all went well."""
    with Journal(config.downloads / "journal.jsonl") as journal:
        for left in config.downloads.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=config.downloads) as partial:
            new = Path(partial) / name
            new.mkdir()
            print(f"fetching {name} into {config.downloads}", flush=True)
            yield new
            shutil.rmtree(config.downloads / name, ignore_errors=True)
            os.replace(new, config.downloads / name)
        journal.append({"package": name})


def debian_folder(package: str, inside: str, config: CorpusConfig) -> Path:
    """Folder `inside` of a Debian package: of the installed one, else of one that is downloaded and unpacked.

    Raises:
        Missing: it is not there and can't be fetched.
    """
    for root in (Path("/"), config.downloads / package):
        if (root / inside).is_dir():
            return root / inside
    if not config.fetch:
        raise Missing(f"Debian's {package} is not installed and fetching is off: sudo apt-get install {package}")
    absent = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if absent:
        raise Missing(f"Debian's {package}: {' and '.join(absent)} absent on this system: unpack the package on a "
                      f"Debian one and copy its /{inside} to {config.downloads / package / inside}")  # fmt: skip
    with _download(config, package) as new:
        _program(["apt-get", "download", package], package, new.parent)
        archive = next(new.parent.glob("*.deb")).resolve()  # the program runs in another folder than we do
        _program(["dpkg-deb", "-x", str(archive), str(new.resolve())], package, new.parent)
        if not (new / inside).is_dir():
            raise Missing(f"Debian's {package} has no folder /{inside} in this release")
    return config.downloads / package / inside


def _program(command: list[str], package: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        unknown = re.search(r"Unable to locate|no installation candidate|Can't select", done.stderr, re.IGNORECASE)
        advice = "the package lists are missing or old: sudo apt-get update" if unknown else "try again later"
        raise Missing(f"Debian's {package}: {' '.join(command[:2])}: {said[-1] if said else 'failed'}: {advice}")


def assets_folder(config: CorpusConfig) -> Path:
    """Folder of the EXR panoramas of npm's @pmndrs/assets, which holds them as base64 in modules.

    Raises:
        Missing: it is not there and can't be fetched.
    """
    folder, archive = config.downloads / ASSETS.removesuffix(".tgz"), config.downloads / ASSETS
    if folder.is_dir():
        return folder
    if archive.is_file():
        data = archive.read_bytes()
    elif not config.fetch:
        raise Missing(f"npm's @pmndrs/assets is not in {config.downloads} and fetching is off")
    else:
        try:
            with urllib.request.urlopen(ASSETS_URL, timeout=60) as answer:
                data = answer.read()
        except OSError as error:
            raise Missing(f"npm's @pmndrs/assets: {ASSETS_URL}: {error}: put the file {ASSETS} that `npm pack "
                          f"@pmndrs/assets@1.7.0` writes into {config.downloads}") from error  # fmt: skip
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != ASSETS_SHA512:
        raise Missing(f"npm's @pmndrs/assets: {archive if archive.is_file() else ASSETS_URL} is not release 1.7.0, its "
                      "SHA-512 differs: fetch it again")  # fmt: skip
    with _download(config, folder.name) as new, tarfile.open(fileobj=io.BytesIO(data)) as package:
        for member in package.getmembers():
            if fnmatch.fnmatch(member.name, "package/hdri/*.exr.js"):
                text = package.extractfile(member).read().decode()
                exr = base64.b64decode(re.search(r"base64,([A-Za-z0-9+/=]+)", text)[1])
                (new / Path(member.name).name.removesuffix(".js")).write_bytes(exr)
    return folder


def concept_of_stamp(path: str) -> str:
    """By STAMP_CONCEPTS; "" where a stamp is none of our concepts, a drawing, or somebody who says its name."""
    spoken = "_desc" in path.rsplit("/", 1)[-1]
    return "" if spoken else next((c for pattern, c in STAMP_CONCEPTS if fnmatch.fnmatchcase(path, pattern)), "")


def stamps(folder: Path) -> list[Material]:
    """Photographs and recordings of tuxpaint-stamps-default; a pair, and all with the same recording, is one group."""
    found, group_of = [], {}
    for path in sorted(folder.rglob("*"), key=lambda path: (path.suffix == ".png", path)):  # recordings first
        inside = path.relative_to(folder).as_posix()
        concept = concept_of_stamp(inside) if path.suffix in (".png", ".ogg", ".wav") else ""
        if not concept:
            continue
        stem, kind = inside.rsplit(".", 1)[0], "photo"
        if path.suffix != ".png":
            kind = "sound"
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            group_of[stem] = group_of.setdefault(content, stem)
            if not _audible(path):
                continue
        source = f"debian:{STAMPS}"
        item = Item(kind, inside, concept, (), "", f"{source}/{group_of.get(stem, stem)}", source, "GPL-2")
        found.append(Material(item, path))
    return found


def _audible(path: Path) -> bool:
    try:
        return features.loudest_block_db(features.as_mono(*read_audio(path))) > QUIET_DB
    except (ValueError, av.FFmpegError):
        return False


def panorama_folder(folder: Path, source: str, licence: str) -> list[Material]:
    """Equirectangular pictures; those of one sub-folder are taken for pictures of one place."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".exr", ".jpg", ".jpeg", ".png", ".webp"))
    inside = [path.relative_to(folder) for path in paths]
    places = [name.parts[0] if len(name.parts) > 1 else name.stem for name in inside]
    return [Material(Item("panorama", name.as_posix(), BACKGROUND, (), "", f"{source}/{place}", source, licence), path)
            for name, place, path in zip(inside, places, paths, strict=True)]  # fmt: skip


def _package_panoramas(config: CorpusConfig, missing: list[str]) -> list[Material]:
    """Of one package only: some places are in both."""
    try:
        return panorama_folder(assets_folder(config), "@pmndrs/assets", "CC0-1.0")
    except Missing as error:
        missing.append(str(error))
    try:
        return panorama_folder(debian_folder(BLENDER, BLENDER_FOLDER, config), f"debian:{BLENDER}", "CC0-1.0")
    except Missing as error:
        missing.append(str(error))
        return []


def gather(config: CorpusConfig) -> tuple[list[Material], list[str], list[str]]:
    """All material with its splits, a line on what was found of each origin, and one on each that is missing."""
    missing, packages = [], []
    try:
        packages += stamps(debian_folder(STAMPS, STAMPS_FOLDER, config))
    except Missing as error:
        missing.append(str(error))
    packages += _package_panoramas(config, missing)
    for folder in config.panoramas:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: panoramas names folders of equirectangular pictures")
        packages += panorama_folder(folder, f"own:{folder.resolve().name}", "not stated")
    taken = {material.item.source for material in packages}
    indexed = [Material(item, config.data / item.file) for item in read_items() if item.source not in taken]
    shared = [material for material in indexed if material.item.concept and material.path.is_file()]
    if not shared:
        missing.append(f"{config.data}: holds nothing of training/splits.csv (used where present)")
    kinds = Counter((material.item.source, material.item.kind) for material in packages)
    kinds.update((str(config.data), material.item.kind) for material in shared)
    found = [f"{number} {kind}s of {source}" for (source, kind), number in sorted(kinds.items())]
    return assign(packages, alone=not shared) + shared, found, missing


def assign(packages: list[Material], alone: bool) -> list[Material]:
    """Material of packages with its splits: by training/data.py's rule; `alone` none of it is kept for tests only."""
    # Recordings are the scarce half of a pair, so they choose its split.
    ordered = sorted(packages, key=lambda material: material.item.kind == "photo")
    rows = [{"kind": item.kind, "concept": item.concept, "group": item.group, "source": "" if alone else item.source}
            for item in (material.item for material in ordered)]  # fmt: skip
    assign_splits(rows)
    return [replace(material, item=replace(material.item, split=row["split"]))
            for material, row in zip(ordered, rows, strict=True)]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- plan


class Shelf:
    """The material of one split; `concepts` are those that can be both seen and heard."""

    def __init__(self, material: list[Material], split: str):
        self.photos, self.sounds = defaultdict(list), defaultdict(list)
        mine = sorted((part for part in material if part.item.split == split),
                      key=lambda part: (part.item.source, part.item.file))  # fmt: skip
        for part in mine:
            if part.item.kind != "panorama":
                getattr(self, part.item.kind + "s")[part.item.concept].append(part)
        self.panoramas = [part for part in mine if part.item.kind == "panorama"]
        self.plain, self.noises = self.photos.pop(BACKGROUND, []), self.sounds.pop(BACKGROUND, [])
        self.concepts = sorted(set(self.photos) & set(self.sounds))
        # The square root evens out concepts without repeating the scarce ones too often.
        weights = np.sqrt([min(len(self.photos[name]), len(self.sounds[name])) for name in self.concepts])
        self.weights = weights / max(weights.sum(), 1e-9)

    def lack(self) -> str:
        """What is not there, or ""."""
        if not self.concepts:
            return "no concept with a photograph and a recording"
        return "" if self.panoramas or self.plain else "no panorama or photograph as background"

    def place(self, rng: np.random.Generator) -> Material:
        places = self.plain if not self.panoramas or (self.plain and rng.random() < 0.25) else self.panoramas
        return places[rng.integers(len(places))]


def plan(material: list[Material], config: CorpusConfig, missing: list[str]) -> list[Recipe]:
    """What every composited clip is made of.

    Raises:
        FileNotFoundError: there is not enough material for any clip; the text repeats what is missing.
    """
    shelves = {split: Shelf(material, split) for split in SPLITS}
    lacks = {split: shelf.lack() for split, shelf in shelves.items() if shelf.lack()}
    splits = [split for split in SPLITS if split not in lacks]
    if not splits and config.clips:
        raise FileNotFoundError("nothing to compose clips of:\n  " + "\n  ".join(dict.fromkeys(lacks.values()))
                                + "\nNot found:\n  " + "\n  ".join(missing))  # fmt: skip
    missing += [f"no {split} clips: {reason}" for split, reason in lacks.items()]
    shares = {"train": 1 - config.validation_share - config.test_share, "validation": config.validation_share,
              "test": config.test_share}  # fmt: skip
    shares = {split: shares[split] for split in splits}
    if config.clips and not sum(shares.values()) > 0:
        raise ValueError(f"there is material for {splits} alone, and the share of these clips is 0")
    return [_draw(index, shelves, shares, config) for index in range(config.clips)]


def _draw(index: int, shelves: dict[str, Shelf], shares: dict[str, float], config: CorpusConfig) -> Recipe:
    rng = np.random.default_rng((config.seed, index))
    weights = np.array([*shares.values()])
    split = [*shares][rng.choice(len(shares), p=weights / weights.sum())]
    shelf = shelves[split]
    concept = shelf.concepts[rng.choice(len(shelf.concepts), p=shelf.weights)]
    photo, sound = (parts[rng.integers(len(parts))] for parts in (shelf.photos[concept], shelf.sounds[concept]))
    place = shelf.place(rng)
    noise = shelf.noises[rng.integers(len(shelf.noises))] if shelf.noises and rng.random() < 0.5 else None
    files = [part and (part.item.source, part.item.file) for part in (photo, sound, place, noise)]
    key = (RECIPE, config.seed, index, config.seconds, config.fps, config.side, files)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    return Recipe(f"{concept}-{index:05d}-{digest}", index, split, photo, sound, place, noise)


# ------------------------------------------------------------------------------------------------------------- compose


def read_picture(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB uint8 (H, W, 3), and the opacity float32 (H, W) of a cut-out or None.

    Raises:
        ValueError, av.FFmpegError: it is missing or damaged.
    """
    if path.suffix.lower() == ".exr":
        return _read_exr(path), None
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError(f"{path} is missing or no picture")
    if picture.dtype != np.uint8 or picture.ndim == 2 or picture.shape[2] < 4:
        return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), None
    alpha = picture[..., 3].astype(np.float32) / 255
    picture = cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2RGB)
    # What lies under the transparent part, often white, would shine through at the rim: the nearest colours instead.
    spread = cv2.GaussianBlur(np.dstack([picture * alpha[..., None], alpha]), (0, 0), 2.0)
    around = spread[..., :3] / np.maximum(spread[..., 3:], 1e-3)
    return np.where(alpha[..., None] > 0.9, picture, np.clip(around, 0, 255).astype(np.uint8)), alpha


@lru_cache(maxsize=8)
def _read_exr(path: Path) -> np.ndarray:
    """Light compressed to RGB uint8 as of Reinhard et al. 2002, "Photographic tone reproduction", eq. 4."""
    with av.open(io.BytesIO(path.read_bytes()), format="exr_pipe") as container:  # OpenCV's wheels read no EXR
        frame = next(container.decode(video=0))
    kinds = {"gbrpf16le": np.float16, "gbrpf32le": np.float32}
    if frame.format.name not in kinds:
        raise ValueError(f"{path} has pixels of the format {frame.format.name}; wanted is one of {[*kinds]}")
    # Converting them by FFmpeg would cut off all that is brighter than 1.
    planes = [np.frombuffer(plane, kinds[frame.format.name]).reshape(frame.height, -1) for plane in frame.planes]
    light = np.stack([planes[i][:, : frame.width] for i in (2, 0, 1)], axis=2).astype(np.float32)
    light *= 0.18 / np.exp(np.log(np.clip(light.mean(axis=2), 1e-3, 1e3)).mean())
    # FFmpeg's decoder leaves dark rings and blocks of one colour in lamps and the sun, which are white.
    bright = cv2.dilate(light.max(axis=2), np.ones((9, 9)))[..., None]
    broken = (bright > 4) & (light.min(axis=2, keepdims=True) < 0.1 * light.max(axis=2, keepdims=True))
    light = np.clip(np.where(broken, bright, light), 0, 100)
    light = light * (1 + light / 9) / (1 + light)
    return np.round(255 * np.clip(light, 0, 1) ** (1 / 2.2)).astype(np.uint8)


def _background(rng: np.random.Generator, picture: np.ndarray, panorama: bool, height: int, width: int) -> np.ndarray:
    """RGB uint8 (height, width, 3), cut from a panorama at eye level or from a photograph."""
    if not panorama:
        return covering(jitter(rng, picture), height, width)
    layout = ViewLayout((0.0,), rng.choice([-12.0, 0.0, 12.0]), *[rng.choice([75.0, 100.0])] * 2)
    turned = np.roll(picture, rng.integers(picture.shape[1]), axis=1)
    top = (width - height) // 2
    return cut_views(turned, layout, (width, width))[0, top : top + height]


def _object(rng: np.random.Generator, picture: np.ndarray, alpha: np.ndarray | None, height: int, width: int):
    """A photograph or cut-out at a random size for a frame of (height, width), and its opacity."""
    if alpha is None:
        picture = jitter(rng, picture)
        alpha = feathered_alpha(rng, *picture.shape[:2])
    elif rng.random() < 0.5:
        picture, alpha = picture[:, ::-1], alpha[:, ::-1]
    side = height * np.exp(rng.uniform(*np.log([0.35, 0.85])))
    scale = min(side / min(alpha.shape), 0.95 * width / alpha.shape[1], 0.95 * height / alpha.shape[0])
    size = tuple(max(8, round(length * scale)) for length in alpha.shape[::-1])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=how), cv2.resize(alpha, size, interpolation=how)


def _glide(rng: np.random.Generator, low: float, high: float, count: int) -> np.ndarray:
    """(count,) a value that goes slowly from near one of two bounds to near the other."""
    ends = np.array([rng.uniform(0, 0.3), rng.uniform(0.7, 1)])[:: rng.choice([-1, 1])]
    time = np.linspace(0, 1, count)
    return low + (high - low) * (ends[0] + (ends[1] - ends[0]) * time**2 * (3 - 2 * time))


def pictures(rng: np.random.Generator, photo, place, panorama: bool, config: CorpusConfig) -> Iterator[np.ndarray]:
    """The frames of a clip, RGB uint8 (side, 4/3 side, 3).

    Args:
        photo, place: what read_picture gives. panorama: whether `place` is equirectangular.
    """
    height, width, count = config.side, 2 * round(config.side * 2 / 3), round(config.seconds * config.fps)
    fills = photo[1] is None and rng.random() < FULL_FRAME
    room = [2 * round((1.1 if fills else MARGIN) * length / 2) for length in (height, width)]
    still = covering(jitter(rng, photo[0]), *room) if fills else _background(rng, place[0], panorama, *room)
    zoom = _glide(rng, 1.0, 1.15, count)
    left, top = (_glide(rng, 0, free - length, count) for free, length in zip(room[::-1], (width, height), strict=True))
    item, alpha = _object(rng, *photo, height, width)
    x = width / 2 + _glide(rng, -0.5, 0.5, count) * max(0.15 * width, 0.8 * (width - alpha.shape[1]))
    y = height / 2 + _glide(rng, -0.5, 0.5, count) * max(0.1 * height, 0.6 * (height - alpha.shape[0]))
    scale = _glide(rng, 0.88, 1.05, count)
    turns = rng.uniform(0.1, 0.4) * np.arange(count) / config.fps + rng.random()
    angle = rng.uniform(0, 4) * np.sin(2 * np.pi * turns)  # degrees
    middle = alpha.shape[1] / 2, alpha.shape[0] / 2
    for i in range(count):
        view = np.float32([[1 / zoom[i], 0, left[i]], [0, 1 / zoom[i], top[i]]])
        frame = cv2.warpAffine(still, view, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        if not fills:
            move = cv2.getRotationMatrix2D(middle, angle[i], scale[i])
            move[:, 2] += x[i] - middle[0], y[i] - middle[1]
            moved = cv2.warpAffine(item, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
            opacity = cv2.warpAffine(alpha, move, (width, height))
            paste(frame, np.zeros_like(opacity), moved, opacity, 0, 0)
        yield frame


def sound(rng: np.random.Generator, recording: np.ndarray, noise: np.ndarray | None, seconds: float) -> np.ndarray:
    """(n,) float32 at the model's rate: the recording at a random level over faint noise.

    Args:
        recording, noise: (m,) float32 at the model's rate; without `noise` it is pink noise.
    """
    heard = excerpt(rng, at_speed(recording, rng.uniform(0.9, 1.1)), seconds)
    if rng.random() < 0.3:
        heard = reverberant(rng, heard, rng.uniform(0.15, 0.8), 10 ** rng.uniform(-0.5, 1.0))
    heard = at_level(heard, rng.uniform(-32, -12))
    faint = pink_noise(rng, len(heard)) if noise is None else excerpt(rng, noise, seconds)
    return np.clip(heard + at_level(faint, rng.uniform(-75, -52)), -1, 1)


def _recording(part: Material | None) -> np.ndarray | None:
    return None if part is None else features.as_mono(*read_audio(part.path))


def make(recipe: Recipe, config: CorpusConfig) -> str:
    """Writes the clip, whole or not at all.

    Returns:
        "made", or why the clip is left out: material of it that is damaged.

    Raises:
        OSError: the disk is full.
    """
    try:
        photo, place = read_picture(recipe.photo.path), read_picture(recipe.place.path)
        recording, noise = _recording(recipe.sound), _recording(recipe.noise)
    except (ValueError, av.FFmpegError) as error:
        return f"left out, damaged material: {error}"
    seen, heard = (np.random.default_rng((config.seed, recipe.index, number)) for number in (1, 2))
    frames = pictures(seen, photo, place, recipe.place.item.kind == "panorama", config)
    heard = sound(heard, recording, noise, config.seconds)
    data = encode_mp4(frames, heard, features.SAMPLE_RATE, config.fps, quality=20)
    target = clip_path(recipe, config)
    partial = target.with_suffix(".partial")
    try:
        partial.write_bytes(data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        partial.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, f"the disk of {config.output} is full: free some space and start again, it goes on "
                      "where it was") from error  # fmt: skip
    os.replace(partial, target)
    return "made"


def clip_path(recipe: Recipe, config: CorpusConfig) -> Path:
    return config.output / "composited" / f"{recipe.id}.mp4"


def _start_worker() -> None:
    """In a worker process: one thread, Ctrl-C is the parent's business, and it ends with the parent, killed or not."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_all(recipes: list[Recipe], config: CorpusConfig, journal: Journal) -> Counter:
    """Makes clips in processes of their own; how many were "made" and "left out"."""

    def task(recipe: Recipe) -> list[str]:
        outcome = pool.submit(make, recipe, config).result()
        parts = {name: part and part.item.file for name, part in vars(recipe).items() if name in PARTS}
        journal.append({"key": recipe.id, "outcome": outcome, **parts})
        return [outcome]

    # Not forked: a fork beside threads of other libraries hangs now and then.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(config.workers, len(recipes)), context, _start_worker) as pool:
        tasks = [lambda recipe=recipe: task(recipe) for recipe in recipes]
        return run_parallel(config.workers, tasks, threading.Event(), "clip")


# ----------------------------------------------------------------------------------------------------------- real clips


def labels_of(what_sounds: str) -> str:
    """Concepts, "|"-separated, of what is noted to sound in a clip; "" where that is doubtful or none of ours."""
    if re.search(DOUBTFUL, what_sounds):
        return ""
    return "|".join(concept for pattern, concept in HEARD if re.search(pattern, what_sounds))


def real_clips(config: CorpusConfig) -> list[dict]:
    """Rows of collected.csv, and of SOURCES.csv, for the real clips; all clips of one repository are of one split."""
    index = config.data / "clips" / "index.csv"
    if not index.is_file():
        return []
    with open(index, newline="", encoding="utf-8") as file:
        listed = [row for row in csv.DictReader(file) if (index.parent / row["file"]).is_file()]
    repositories = [{"source": row["source_repo"], "split": ""} for row in listed]
    splits = choose_splits(repositories, config.validation_share, config.test_share)
    return [
        {"id": Path(row["file"]).stem, "file": (index.parent / row["file"]).resolve(), "start": 0,
         "label": labels_of(row["what_sounds"]), "split": splits[row["source_repo"]],
         "source": f"{row['source_repo']}/{row['source_path']}", "source_start": row["start_s"],
         "origin": "real video", "licence": row["licence"]}
        for row in listed
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- run


def corpus(config: CorpusConfig) -> Result:
    """Makes the clips that are not there yet, and the tables.

    Raises:
        FileNotFoundError: there is no material for any clip; the text says where to get some.
        OSError: the disk is full, or another process works in the output folder.
    """
    material, found, missing = gather(config)
    recipes = plan(material, config, missing)
    real = real_clips(config)
    if not real:
        missing.append(f"{config.data / 'clips'}: no real clips (used where present)")
    (config.output / "composited").mkdir(parents=True, exist_ok=True)
    with Journal(config.output / "journal.jsonl") as journal:
        for left in (config.output / "composited").glob("*.partial"):
            left.unlink()
        new = [recipe for recipe in recipes if not clip_path(recipe, config).is_file()]
        counts = Counter({"already there": len(recipes) - len(new)})
        try:
            counts += make_all(new, config, journal) if new else Counter()
        finally:
            done = [recipe for recipe in recipes if clip_path(recipe, config).is_file()]
            rows = [_row(recipe, config) for recipe in done] + real
            write_table(config.output / "collected.csv", COLUMNS, rows)
            write_table(config.output / "SOURCES.csv", SOURCES, _sources(done, real))
    return Result(rows, counts, found, missing)


def _row(recipe: Recipe, config: CorpusConfig) -> dict:
    file = clip_path(recipe, config).relative_to(config.output).as_posix()
    return {"id": recipe.id, "file": file, "start": 0, "label": recipe.concept, "split": recipe.split,
            "source": recipe.sound.item.group, "source_start": 0, "origin": "composited"}  # fmt: skip


def _sources(recipes: list[Recipe], real: list[dict]) -> Iterator[dict]:
    used = Counter(part.item for recipe in recipes for part in recipe.materials())
    for item, clips in sorted(used.items(), key=lambda pair: (pair[0].kind, pair[0].source, pair[0].file)):
        yield {**vars(item), "clips": clips}
    for row in real:
        yield {**row, "kind": "clip", "file": f"clips/{row['file'].name}", "concept": row["label"], "clips": 1}


def summary(result: Result) -> str:
    """What a person wants to know of a corpus: where it comes from, and clips by origin, split and concept."""
    lines = [f"found: {line}" for line in result.found] + [f"not found: {line}" for line in result.missing]
    for title, key in (("origin", "origin"), ("concept", "label")):
        counts = Counter((row[key], row["split"]) for row in result.rows)
        lines += ["", f"{title:24s}" + "".join(f"{split:>12s}" for split in SPLITS)]
        for name in sorted({name for name, _ in counts}):
            lines.append(f"{name or '(no label)':24s}" + "".join(f"{counts[name, split]:12d}" for split in SPLITS))
    lines += ["", *(f"{number:8d} {what}" for what, number in result.counts.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    import tyro

    try:
        print(summary(corpus(tyro.cli(CorpusConfig))))
    except (OSError, ValueError) as error:
        sys.exit(f"corpus: {error}")
