"""Packed clips as what is seen and heard in mixed scenes, behind the cache: `mixing.Collection` for web video.

    config = ClipsConfig(shards=Path("shards"), keep="jpeg", memory_gb=16)
    mixer = SceneMixer(ClipCollection(config, "train", read_concepts()), MixConfig(), seed=0)

A clip whose label names a concept of training/concepts.csv is one more photograph and recording of it. Of any other
clip, and of all with `labels=False`, nothing is known but that its picture and its sound belong together: the video it
comes from is a class of its own, with an id from the number of concepts upwards, and training/train.py learns from that
alone (the report's way). Both kinds may be mixed, with each other and with photographs and recordings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from avssl_ros import features
from training.cache import CachedDataset, cache_key
from training.clips import BlobDataset, ClipDataset, JpegDataset
from training.data import Concept, Item, read_concepts, read_items
from training.mixing import SECONDS, SIZE, Collection
from training.pack import DamagedClip, Shards

FASTEST = 1.18  # a recording is played up to this much faster: the window is longer by that
QUIET_DB = -50.0  # of full scale: a window whose loudest 100 ms are below it is drawn anew,
TRIES = 3  # at most this often
GB = 1 << 30


@dataclass(frozen=True)
class ClipsConfig:
    """Which packed clips to train on, and what of them is cached on this machine."""

    shards: Path | None = None  # folder that training/pack.py has written; None: no clips
    labels: bool = True  # of the clips; without them, which video a patch comes from is all that is known
    keep: Literal["off", "blob", "jpeg", "item"] = "jpeg"  # what is cached: the table is in training/cache.py
    memory_gb: float = 4.0  # of shared memory, for all processes of a run on one machine together
    disk: Path | None = None  # folder on a local disk for what memory has no room for
    disk_gb: float = 50.0  # of it, likewise
    decoder: Literal["pyav", "torchcodec"] = "pyav"


def cached(config: ClipsConfig, dataset) -> CachedDataset:
    """A dataset of training/clips.py behind the cache; its `parameters()` are the key."""
    disk_bytes = int(config.disk_gb * GB) if config.disk is not None else 0
    key, memory_bytes = cache_key(**dataset.parameters()), int(config.memory_gb * GB)
    return CachedDataset(dataset, key, memory_bytes, config.disk, disk_bytes)


def concept_of_label(concepts: list[Concept]) -> dict[str, str]:
    """Concept by every name that a list of clips may use for it: ours, AudioSet's (names and ids), VGGSound's."""
    names = {}
    for concept in concepts:
        for name in (*concept.vggsound, *concept.audioset, *concept.audioset_mid, *concept.sounds, concept.label,
                     concept.name):
            names[_plain(name)] = concept.name
    return names


@lru_cache(maxsize=1)
def _known_names() -> dict[str, str]:
    return concept_of_label(read_concepts())


def concept_called(label: str) -> str | None:
    """The concept that a label of a model stands for; None where the table has none of that name.

    The labels of training/discover.py are those of lists of clips, with a number where several kinds share one.
    """
    known, plain = _known_names(), _plain(label)
    return known.get(plain) or known.get(re.sub(r" \d+$", "", plain))


def _plain(name: str) -> str:
    return " ".join(name.replace(",", " ").replace("_", " ").lower().split())


def open_collection(data: Path | None, clips: ClipsConfig, split: str, concepts: list[Concept],
                    cache: Path = Path("cache"), more: Sequence[Item] = (),
                    share: float = 1.0) -> Collection | ClipCollection:
    """What scenes of one split are mixed from: photographs and recordings, clips, or both.

    Args:
        data: folder with photos/, images/, sounds/, esc10/ and panoramas/; None: clips alone.
        cache: folder for the decoded recordings. more: further items.
        share: of the photographs and recordings that are used, the same ones each time.

    Raises:
        FileNotFoundError: where there is neither, or the folder or the shards are missing.
    """
    base = None
    if data is not None:
        if not data.is_dir():
            raise FileNotFoundError(f"no folder {data}: give --data with photos/, images/, sounds/, esc10/ and "
                                    "panoramas/, or --data None --clips.shards with packed clips")
        base = Collection([*read_items(split=split), *more], data, concepts, cache / f"sounds-{split}.npz", share)
    if clips.shards is not None:
        return ClipCollection(clips, split, concepts, base)
    if base is None:
        raise FileNotFoundError("no material: give --data, --clips.shards or both")
    return base


class ClipCollection:
    """Clips of one split by concept, or by the video they come from; of a `base` collection everything joins in.

    `videos` are the names of its classes that are a single video, of whose label nothing is known.

    Args:
        config: shards and cache.
        split: "train", "validation" or "test".
        concepts: in the order of their ids.
        base: photographs, recordings and panoramas to mix in; None: clips alone. Without its panoramas, blurred frames
            are the background.

    Raises:
        ValueError, FileNotFoundError: as training/pack.py's Shards.
    """

    def __init__(self, config: ClipsConfig, split: str, concepts: list[Concept], base: Collection | None = None):
        shards = Shards(config.shards, split)
        self.base, self.shards = base, shards
        self.class_of = {concept.name: index for index, concept in enumerate(concepts)}
        self.photos, self.sounds = defaultdict(list), defaultdict(list)
        if base is not None:
            for mine, theirs in ((self.photos, base.photos), (self.sounds, base.sounds)):
                mine.update({name: list(items) for name, items in theirs.items()})
        known = concept_of_label(concepts) if config.labels else {}
        for index in range(len(shards)):
            name = self._name(shards.clip(index), known)
            self.class_of.setdefault(name, len(self.class_of))
            self.photos[name].append(index)
            self.sounds[name].append(index)
        self.videos = frozenset(self.class_of) - {concept.name for concept in concepts}
        self.panoramas = base.panoramas if base is not None and base.panoramas else list(range(len(shards)))
        self.clips, self.windows = self._open(config)

    @staticmethod
    def _name(clip, known: dict[str, str]) -> str:
        names = {known[_plain(label)] for label in clip.labels if _plain(label) in known}
        return names.pop() if len(names) == 1 else f"video {clip.source}"

    def _open(self, config: ClipsConfig) -> tuple[ClipDataset, CachedDataset | None]:
        """Decoder of windows, and the finished windows where those are what is cached."""
        blobs = None
        if config.keep == "blob":
            blobs = cached(config, BlobDataset(self.shards))
        elif config.keep == "jpeg":
            blobs = cached(config, JpegDataset(self.shards, decoder=config.decoder))
        clips = ClipDataset(self.shards, SECONDS * FASTEST, 1, SIZE, decoder=config.decoder, blobs=blobs)
        return clips, cached(config, clips) if config.keep == "item" else None

    @property
    def cache(self) -> CachedDataset | None:
        """The cache, for its counters; None without one."""
        return self.windows or (self.clips.blobs if isinstance(self.clips.blobs, CachedDataset) else None)

    def report(self, split: str) -> str:
        """What was read, from where, and what was damaged, in a line."""
        line = f"{split}: {len(self.shards)} clips, {len(self.clips.damaged)} damaged"
        if self.cache is None:
            return f"{line}, no cache"
        counts = self.cache.counters()
        hits = "-" if counts["hit_rate"] is None else f"{counts['hit_rate']:.1%}"
        return f"{line}, {counts['source_opens']} read from the shards, {hits} of all accesses from the cache"

    def close(self) -> None:
        """Leaves the cache; the last process of the machine that does removes its shared memory."""
        if self.cache is not None:
            self.cache.close()

    def scene(self, key: tuple[int, ...]) -> SceneClips:
        """The clips with the windows of one scene, so that picture and sound of a clip are of the same moment."""
        return SceneClips(self, key)


class SceneClips:
    """What the scene `key` takes from a ClipCollection: one window of each clip, drawn when it is first asked for."""

    def __init__(self, collection: ClipCollection, key: tuple[int, ...]):
        self._collection, self._key, self._windows = collection, key, {}
        self.photos, self.sounds, self.class_of = collection.photos, collection.sounds, collection.class_of
        self.panoramas = collection.panoramas

    def photo(self, item: Item | int) -> np.ndarray:
        """RGB uint8 (H, W, 3). Raises DamagedClip."""
        return self._collection.base.photo(item) if isinstance(item, Item) else self._window(item)["frames"][0]

    def sound(self, item: Item | int) -> np.ndarray:
        """float32 (n,) at the model's rate. Raises DamagedClip."""
        return self._collection.base.sound(item) if isinstance(item, Item) else self._window(item)["sound"]

    def place(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A real panorama and the people in it, or a frame blurred and mirrored until nothing in it can be told: RGB
        uint8 (H, 2 H, 3) and uint8 (H, 2 H), see Collection."""
        base = self._collection.base
        if base is not None and base.panoramas:
            return base.place(rng)
        frame = self.photo(self.panoramas[rng.integers(len(self.panoramas))])
        blurred = cv2.GaussianBlur(frame, (0, 0), SIZE / 16)
        doubled = np.hstack([blurred, blurred[:, ::-1]])
        return cv2.resize(doubled, (1280, 640), interpolation=cv2.INTER_CUBIC), np.zeros((640, 1280), np.uint8)

    def shows_people(self, item: Item | int) -> bool:
        """Whether somebody is known to be in a photograph; of clips nothing is known."""
        return isinstance(item, Item) and self._collection.base.shows_people(item)

    def heads(self, item: Item | int, height: int, width: int) -> np.ndarray:
        """As of Collection; of clips nothing is known."""
        if isinstance(item, Item):
            return self._collection.base.heads(item, height, width)
        return np.zeros((height, width), np.uint8)

    def _window(self, index: int) -> dict[str, Any]:
        if index not in self._windows:
            self._windows[index] = self._draw(index)
        return self._windows[index]

    def _draw(self, index: int) -> dict[str, Any]:
        if self._collection.windows is not None:
            window = self._collection.windows[index]
            if window["index"] != index:  # the window of another clip in place of a damaged one
                raise DamagedClip(f"clip {self._collection.shards.clip(index).id!r} is damaged")
            return window
        drawn = []
        for attempt in range(TRIES):
            drawn.append(self._collection.clips.window(index, (*self._key, index, attempt)))
            if features.loudest_block_db(drawn[-1]["sound"]) > QUIET_DB:
                return drawn[-1]
        return max(drawn, key=lambda window: features.loudest_block_db(window["sound"]))
