"""What packing and caching clips cost and save, side by side in one run.

    python benchmarks/data_pipeline.py [--clips 60] [--seconds 1.0] [--json FILE]
    python benchmarks/data_pipeline.py --sections cache slow-source --latencies 0.01 --bandwidth 50e6

Makes mp4 clips (h264 and aac, 256x256, 15 frames a second, 10 s, a key frame a second) of textures that drift over one
another, which compress like real clips, and sound of changing tones and noise. Then, by section:

layouts      Random windows of frames and sound from four layouts on the disk. Each decodes the same windows, in turns,
             so that a busy machine slows all alike. Raw frames are stored of the first 10 clips only, since each takes
             some 15 MB; their bytes ratio is to the mp4 files of those clips.
cache        Two epochs of the same finished item, 1 frame and the spectrogram of 3 s, with no cache and with a cache in
             shared memory (training/cache.py) of mp4 blobs, of JPEG frames and of the finished item itself, whose
             random window then stays that of the first epoch. One process, one item after another.
slow-source  The first batch of a DataLoader, by a source with the latency and bandwidth of a network disk: through a
             cache of finished items, and after all clips have been copied to the local disk. Every reader sleeps a
             latency an access and its bytes over the bandwidth, on top of the real reading; readers do not slow one
             another.

Figures are medians over the turns; copying is done once. All files are in the page cache, for all that is compared:
but for the stated sleep this measures what a way costs the processor, not the disk. Caches are new in each turn and
gone at the end; of a killed run `python training/cache.py clear` removes them. The exit status does not tell the bars.
"""

from __future__ import annotations

import csv
import hashlib
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import cv2
import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from avssl_ros.features import log_mel
from training.cache import CachedDataset
from training.clips import BlobDataset, ClipDataset, JpegDataset, decode, encode_mp4
from training.evaluate import write_report
from training.pack import NEEDED, Pack, Shards, pack

SIZE, FPS, DURATION, RATE = 256, 15, 10, 32000
RAW_CLIPS = 10  # of which raw frames are stored
MEMORY = Path("/dev/shm")
CORPUS_HOURS = 160  # of the work this project follows
CORPUS_CLIPS = CORPUS_HOURS * 3600 // DURATION
ITEM_SECONDS = 3.0  # of a finished item's spectrogram
CACHE_BYTES = 1 << 32  # more than any cache here fills


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, on how much."""

    clips: int = 60
    sections: tuple[str, ...] = ("layouts", "cache", "slow-source")
    seconds: float = 1.0  # of a window of the layouts
    windows: int = 60  # a turn and layout
    turns: int = 5
    cache_clips: int = 20  # of which epochs are timed, at most `clips`: half a second each and turn, for JPEG
    source_clips: int = 500  # of the slow source: the made clips, repeated under further numbers
    latencies: tuple[float, ...] = (0.01, 0.02, 0.05)  # of the slow sources, seconds an access, one after another
    bandwidth: float = 50e6  # of the slow source, bytes a second for one reader
    batch: int = 16
    workers: int = 2  # of the DataLoader
    readers: int = 4  # threads of a worker that fetch the items of a batch, from the slow source or the copies
    json: Path | None = None  # also write the figures here


@dataclass(frozen=True)
class Corpus:
    """The clips that all sections share: one mp4 file each, packed shards, and a folder for more."""

    folder: Path
    files: list[Path]
    shards: Shards


def drifting_pictures(rng: np.random.Generator) -> np.ndarray:
    """(F, SIZE, SIZE, 3) uint8: a background and a foreground with detail of all scales, moving, and sensor noise."""
    count, room = DURATION * FPS, 2 * SIZE
    layers = []
    for _ in range(2):
        layer = sum(cv2.resize(rng.normal(0, scale**0.9, (room // scale, room // scale, 3)).astype(np.float32),
                               (room, room), interpolation=cv2.INTER_CUBIC) for scale in (1, 2, 4, 8, 16, 32, 64, 128))
        layers.append(127 + 45 * layer / layer.std())
    shape = cv2.GaussianBlur(rng.normal(size=(room, room)).astype(np.float32), (0, 0), 30) > 0
    speeds = rng.uniform(-4, 4, (2, 2))  # pixels a frame
    pictures = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for number in range(count):
        (back, front), cover = ((_moved(x, speeds[i] * number) for i, x in enumerate(layers)),
                                _moved(shape.astype(np.float32), speeds[1] * number)[..., None])
        noise = rng.normal(0, 0.7, back.shape)
        pictures[number] = np.clip(back * (1 - cover) + front * cover + noise, 0, 255)
    return pictures


def _moved(layer: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The middle of a layer that has moved by (x, y) pixels, wrapped at its edges."""
    shift = np.float32([[1, 0, by[0] - SIZE / 2], [0, 1, by[1] - SIZE / 2]])
    return cv2.warpAffine(layer, shift, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def changing_sound(rng: np.random.Generator) -> np.ndarray:
    """(n,) float32: four tones a second over noise."""
    pitch = np.repeat(rng.uniform(100, 3000, DURATION * 4), RATE // 4)
    tones = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
    return (tones + rng.normal(0, 0.05, tones.shape)).astype(np.float32)


def write_clip(path: Path, rng: np.random.Generator) -> None:
    """One clip as training/prepare.py makes them."""
    sound = changing_sound(rng)
    path.write_bytes(encode_mp4(drifting_pictures(rng), sound, RATE, FPS))


def make_corpus(folder: Path, clips: int) -> Corpus:
    """Writes the clips with their manifest and packs them."""
    (folder / "prepared" / "clips").mkdir(parents=True)
    with open(folder / "prepared" / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, NEEDED)
        writer.writeheader()
        for number in tqdm(range(clips), desc="clips", unit="clip"):
            name = f"clips/{number:04d}.mp4"
            write_clip(folder / "prepared" / name, np.random.default_rng(number))
            data = (folder / "prepared" / name).read_bytes()
            writer.writerow({"id": f"{number:04d}", "file": name, "source": f"made-{number:04d}", "start": 0,
                             "duration": DURATION, "fps": FPS, "width": SIZE, "height": SIZE, "sample_rate": RATE,
                             "split": "train", "labels": "texture", "sha256": hashlib.sha256(data).hexdigest(),
                             "bytes": len(data)})
    pack(Pack(folder / "prepared", folder / "shards"))
    return Corpus(folder, sorted((folder / "prepared" / "clips").glob("*.mp4")), Shards(folder / "shards"))


# -------------------------------------------------------------------------------- section 1: layouts on the disk


def raw_file(corpus: Corpus, path: Path) -> Path:
    """Decoded frames and sound of the first clips in HDF5 with gzip, a chunk a frame and a second of sound."""
    count = min(RAW_CLIPS, len(corpus.files))
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("frames", (count, DURATION * FPS, SIZE, SIZE, 3), "u1", compression="gzip",
                                     chunks=(1, 1, SIZE, SIZE, 3))
        sounds = file.create_dataset("sound", (count, DURATION * RATE), "i2", compression="gzip", chunks=(1, RATE))
        for number in tqdm(range(count), desc="raw frames", unit="clip"):
            frames[number], sound = decode(corpus.files[number], 0.0, DURATION, DURATION * FPS)
            sounds[number] = np.clip(sound * 32767, -32767, 32767)
    return path


def layouts(corpus: Corpus, config: BenchmarkConfig) -> dict:
    """Windows a second and bytes of each layout, with ratios to one mp4 file per clip."""
    raw_path = raw_file(corpus, corpus.folder / "raw.h5")
    count = round(config.seconds * FPS)
    with ExitStack() as stack:
        raw = stack.enter_context(h5py.File(raw_path, "r"))
        memory = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None))
        ram_file = Path(memory) / "clip.mp4"

        def one_file(clip: int, frame: int) -> tuple:
            return decode(corpus.files[clip], frame / FPS, config.seconds, count)

        def blob(clip: int, frame: int) -> tuple:
            return decode(corpus.shards.blob(clip), frame / FPS, config.seconds, count)

        def blob_by_ram_file(clip: int, frame: int) -> tuple:
            ram_file.write_bytes(corpus.shards.blob(clip))
            return decode(ram_file, frame / FPS, config.seconds, count)

        def raw_frames(clip: int, frame: int) -> tuple:
            begin = round(frame / FPS * RATE)
            clip %= len(raw["frames"])
            sound = raw["sound"][clip, begin:begin + round(config.seconds * RATE)]
            return raw["frames"][clip, frame:frame + count], sound

        times = in_turns({"one mp4 file per clip": one_file, "HDF5 blob in memory": blob,
                          "HDF5 blob by a RAM file": blob_by_ram_file, "raw frames, HDF5 gzip": raw_frames},
                         random_windows(corpus, config), config.turns)
    sizes = [path.stat().st_size for path in corpus.files]
    stored, packed = sum(sizes), sum(path.stat().st_size for path in corpus.shards.paths) / sum(sizes)
    bytes_ratio = [1.0, packed, packed, raw_path.stat().st_size / sum(sizes[:RAW_CLIPS])]
    reference = times["one mp4 file per clip"]
    rows = {name: {"windows_per_second": float(config.windows / np.median(spent)),
                   "throughput_ratio": float(np.median(reference / spent)), "bytes_ratio": ratio,
                   "bytes_per_clip": ratio * stored / len(sizes)}
            for (name, spent), ratio in zip(times.items(), bytes_ratio, strict=True)}
    bars = {"blob in memory at least 0.95 of plain files": rows["HDF5 blob in memory"]["throughput_ratio"] >= 0.95,
            "raw gzip frames at least 20 times the bytes": rows["raw frames, HDF5 gzip"]["bytes_ratio"] >= 20}
    return {"rows": rows, "bars": bars}


def random_windows(corpus: Corpus, config: BenchmarkConfig) -> list[tuple[int, int]]:
    """(clip, first frame) of each window."""
    rng = np.random.default_rng(0)
    last = int((DURATION - config.seconds) * FPS)
    return [(int(rng.integers(len(corpus.files))), int(rng.integers(last + 1))) for _ in range(config.windows)]


def in_turns(readers: dict[str, Callable], windows: list[tuple[int, int]], turns: int) -> dict[str, np.ndarray]:
    """Seconds (turns,) that each reader takes for all windows. Within a turn the readers alternate window by window."""
    spent = {name: np.zeros(turns) for name in readers}
    for reader in readers.values():
        reader(*windows[0])
    for turn in tqdm(range(turns), desc="windows", unit="turn"):
        for number, window in enumerate(windows):
            names = list(readers)
            for name in names[number % len(names):] + names[:number % len(names)]:
                started = time.perf_counter()
                readers[name](*window)
                spent[name][turn] += time.perf_counter() - started
    return spent


def print_layouts(found: dict) -> None:
    print(f"\n{'layout':<26}{'windows/s':>10}{'throughput':>12}{'bytes':>9}{'kB a clip':>11}")
    for name, row in found["rows"].items():
        print(f"{name:<26}{row['windows_per_second']:>10.1f}{row['throughput_ratio']:>12.2f}{row['bytes_ratio']:>9.3f}"
              f"{row['bytes_per_clip'] / 1e3:>11.0f}")
    print_bars(found)


def print_bars(found: dict) -> None:
    for bar, met in found["bars"].items():
        print(f"{'met' if met else 'MISSED'}: {bar}")


# ----------------------------------------------------------------------------------- section 2: what the cache keeps


class FinishedItems(Dataset):
    """What an encoder reads, out of a window of frames and sound: nothing is left to do after it, 272 kB a clip.

    Item: {"frame": (SIZE, SIZE, 3) uint8, "spectrogram": (128, 300) float16 normalised log-mel, "index": int}.

    Args:
        shards: the clips.
        blobs: as of ClipDataset.
    """

    def __init__(self, shards: Shards, blobs: Dataset | None = None):
        self.clips = ClipDataset(shards, ITEM_SECONDS, frames=1, size=SIZE, blobs=blobs)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        window = self.clips[index]
        return {"frame": window["frames"][0], "spectrogram": log_mel(window["sound"]).astype(np.float16),
                "index": window["index"]}


def new_cache(dataset: Dataset, memory_bytes: int = CACHE_BYTES, readers: int = 1) -> CachedDataset:
    """An empty cache: its key is of this run and moment, so that nothing of another run is found in it."""
    key = f"benchmark-{os.getpid()}-{secrets.token_hex(8)}"
    return CachedDataset(dataset, key, memory_bytes, readers=readers)


def cache_under(shards: Shards, stored: Dataset) -> tuple[CachedDataset, Dataset, ClipDataset]:
    """A cache of what items are decoded from, the items, and their clips, whose set_epoch gives new windows."""
    cached = new_cache(stored)
    items = FinishedItems(shards, cached)
    return cached, items, items.clips


def cache_over(shards: Shards, memory_bytes: int = CACHE_BYTES) -> tuple[CachedDataset, Dataset, ClipDataset]:
    """A cache of finished items, again as the items, and the clips they are of."""
    items = FinishedItems(shards)
    cached = new_cache(items, memory_bytes)
    return cached, cached, items.clips


CACHES: dict[str, Callable[[Shards], tuple[CachedDataset, Dataset, ClipDataset]]] = {
    "off": lambda shards: cache_over(shards, memory_bytes=0),
    "mp4 blob": lambda shards: cache_under(shards, BlobDataset(shards)),
    "JPEG frames": lambda shards: cache_under(shards, JpegDataset(shards)),
    "finished item": cache_over,
}


def caches(corpus: Corpus, config: BenchmarkConfig) -> dict:
    """Items a second of two epochs, source opens of each and bytes kept, with no cache and three kinds."""
    count = min(config.cache_clips, len(corpus.shards))
    FinishedItems(corpus.shards)[0]  # what is made once in a process (mel filters, codecs) belongs to no epoch
    spent = {name: np.zeros((config.turns, 2)) for name in CACHES}
    opens = {name: np.zeros((config.turns, 2), int) for name in CACHES}
    kept = {}
    for turn in tqdm(range(config.turns), desc="epochs", unit="turn"):
        for name, make in CACHES.items():
            cached, items, clips = make(corpus.shards)
            with closing(cached):
                for epoch in range(2):
                    clips.set_epoch(epoch)
                    before = cached.counters()["source_opens"]
                    started = time.perf_counter()
                    for index in range(count):
                        items[index]
                    spent[name][turn, epoch] = time.perf_counter() - started
                    opens[name][turn, epoch] = cached.counters()["source_opens"] - before
                kept[name] = {"bytes_per_clip": sum(tier["bytes"] for tier in cached.usage().values()) / count,
                              "hit_rate": cached.counters()["hit_rate"]}
    rows = {name: {"items_per_second": (count / np.median(times, axis=0)).tolist(),
                   "second_to_first": float(np.median(times[:, 0] / times[:, 1])),
                   "source_opens": opens[name].max(axis=0).tolist(), **kept[name]} for name, times in spent.items()}
    bars = {"second epoch from finished items at least 50 times the first":
            rows["finished item"]["second_to_first"] >= 50}
    return {"clips": count, "rows": rows, "bars": bars}


def print_caches(found: dict) -> None:
    print(f"\n{found['clips']} clips, an item of 1 frame and {ITEM_SECONDS:g} s of spectrogram; epochs 1 and 2")
    print(f"{'cache':<16}{'items/s 1':>11}{'items/s 2':>11}{'2 : 1':>8}{'kB a clip':>11}{'opens 1':>9}{'opens 2':>9}"
          f"{f'{CORPUS_HOURS} h, GB':>12}{'h an epoch':>12}")
    for name, row in found["rows"].items():
        first, second = row["items_per_second"]
        print(f"{name:<16}{first:>11.1f}{second:>11.1f}{row['second_to_first']:>8.1f}"
              f"{row['bytes_per_clip'] / 1e3:>11.0f}{row['source_opens'][0]:>9}{row['source_opens'][1]:>9}"
              f"{row['bytes_per_clip'] * CORPUS_CLIPS / 1e9:>12.1f}{CORPUS_CLIPS / second / 3600:>12.2f}")
    print(f"{CORPUS_HOURS} h are {CORPUS_CLIPS} clips of {DURATION} s; hours of one process for a second epoch of them")
    print_bars(found)


# ------------------------------------------------------------------------------------- section 3: a network disk


class SlowSource(Dataset):
    """`dataset`, whose items are bytes, as one reader of a network disk gets it.

    Args:
        dataset: of bytes.
        latency: seconds an access.
        bandwidth: bytes a second.
    """

    def __init__(self, dataset: Dataset, latency: float, bandwidth: float):
        self.dataset, self.latency, self.bandwidth = dataset, latency, bandwidth

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> bytes:
        blob = self.dataset[index]
        time.sleep(self.latency + len(blob) / self.bandwidth)
        return blob


class CopiedFiles(Dataset):
    """The mp4 files that `copy_all` wrote. `count` is the number of clips, copied or not."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> bytes:
        return (self.folder / f"{index}.mp4").read_bytes()


def copy_all(source: Dataset, count: int, folder: Path, readers: int) -> float:
    """Copies the first `count` items of bytes to one file each; returns the seconds it took."""
    folder.mkdir()
    started = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        copies = pool.map(lambda index: (folder / f"{index}.mp4").write_bytes(source[index]), range(count))
        for _ in tqdm(copies, total=count, desc=f"copy, {readers} readers", unit="clip"):
            pass
    return time.perf_counter() - started


def first_batch(items: Dataset, config: BenchmarkConfig, turn: int) -> float:
    """The moment (time.perf_counter) at which a new DataLoader's first batch is there; its workers end thereafter."""
    loader = DataLoader(Subset(items, range(config.source_clips)), config.batch, shuffle=True,
                        num_workers=config.workers, generator=torch.Generator().manual_seed(turn))
    batches = iter(loader)
    next(batches)
    return time.perf_counter()


def slow_sources(corpus: Corpus, config: BenchmarkConfig) -> dict:
    """The figures of `slow_source` for each latency, and the bars."""
    disks = [slow_source(corpus, config, latency) for latency in config.latencies]
    bars = {f"{disk['latency'] * 1e3:g} ms: first batch through the cache at most 5 % of copying {disk['clips']} clips "
            "first, by one reader": disk["share"] <= 0.05 for disk in disks}
    return {"disks": disks, "bars": bars}


def slow_source(corpus: Corpus, config: BenchmarkConfig, latency: float) -> dict:
    """Seconds to the first batch through a cache of a slow source, and after copying all of it by 1 or more readers."""
    made = len(corpus.shards)
    shards = Shards(corpus.shards.paths * -(-config.source_clips // made))
    source = SlowSource(BlobDataset(shards), latency, config.bandwidth)
    folder = corpus.folder / f"latency-{latency:g}"
    folder.mkdir()
    copying = {readers: copy_all(source, config.source_clips, folder / f"copy-{readers}", readers)
               for readers in sorted({1, max(1, config.workers)})}
    copied = FinishedItems(shards, CopiedFiles(folder / "copy-1", len(shards)))
    copied = new_cache(copied, memory_bytes=0, readers=config.readers)
    through, first_clip, local = [], [], []
    for turn in tqdm(range(config.turns), desc="first batches", unit="turn"):
        started = time.perf_counter()
        with closing(new_cache(FinishedItems(shards, source), readers=config.readers)) as cached:
            through.append(first_batch(cached, config, turn) - started)
            first_clip.append(cached.counters()["first_item_seconds"])
        started = time.perf_counter()
        local.append(first_batch(copied, config, turn) - started)
    copied.close()
    rows = {"through the cache": {"copy_seconds": 0.0, "batch_seconds": float(np.median(through))}}
    rows |= {f"copied first, {readers} reader{'s' * (readers > 1)}":
             {"copy_seconds": seconds, "batch_seconds": float(np.median(local))}
             for readers, seconds in copying.items()}
    for row in rows.values():
        row["seconds"] = row["copy_seconds"] + row["batch_seconds"]
    share = rows["through the cache"]["seconds"] / rows["copied first, 1 reader"]["seconds"]
    sizes = [shards.clip(index).bytes for index in range(config.source_clips)]
    return {"clips": config.source_clips, "made_clips": made, "bytes_per_clip": float(np.mean(sizes)),
            "latency": latency, "share": share, "bandwidth": config.bandwidth, "batch": config.batch,
            "workers": config.workers, "readers": config.readers,
            "first_clip_seconds": float(np.median(first_clip)), "rows": rows,
            "reading_seconds": copying[1] * min(config.batch, config.source_clips) / config.source_clips}


def print_slow_sources(found: dict) -> None:
    for disk in found["disks"]:
        print_slow_source(disk)
    print_bars(found)


def print_slow_source(found: dict) -> None:
    print(f"\nslow source: {found['latency'] * 1e3:g} ms an access and {found['bandwidth'] / 1e6:g} MB/s for one "
          f"reader; {found['workers']} workers of {found['readers']} threads\n"
          f"{found['clips']} clips of {found['bytes_per_clip'] / 1e3:.0f} kB: {found['made_clips']} made, repeated")
    print(f"{'first batch of ' + str(found['batch']):<26}{'copying s':>11}{'batch s':>9}{'together s':>12}"
          f"{'cache : this':>14}")
    cache = found["rows"]["through the cache"]["seconds"]
    for name, row in found["rows"].items():
        print(f"{name:<26}{row['copy_seconds']:>11.2f}{row['batch_seconds']:>9.2f}{row['seconds']:>12.2f}"
              f"{100 * cache / row['seconds']:>12.1f} %")
    print(f"through the cache the first clip was read after {found['first_clip_seconds']:.2f} s; reading a batch takes "
          f"{found['reading_seconds']:.2f} s,\nstarting workers and decoding the rest, as for copied clips")


# ------------------------------------------------------------------------------------------------------- the run

# Each section is a name, what measures it on the shared corpus, and what prints its figures.
SECTIONS: dict[str, tuple[Callable[[Corpus, BenchmarkConfig], dict], Callable[[dict], None]]] = {
    "layouts": (layouts, print_layouts),
    "cache": (caches, print_caches),
    "slow-source": (slow_sources, print_slow_sources),
}


def check(config: BenchmarkConfig) -> None:
    """Raises ValueError where a setting is out of its range."""
    positive = ("clips", "windows", "turns", "cache_clips", "source_clips", "bandwidth", "batch", "readers")
    wrong = [f"{name} must be > 0, got {getattr(config, name)}" for name in positive if not getattr(config, name) > 0]
    wrong += [f"workers must be >= 0, got {config.workers}"] if config.workers < 0 else []
    if not config.latencies or min(config.latencies) < 0:
        wrong.append(f"latencies must be one or more, all >= 0, got {config.latencies}")
    if not 0 < config.seconds <= DURATION:
        wrong.append(f"seconds must be in (0, {DURATION}], got {config.seconds}")
    if not config.sections or set(config.sections) - set(SECTIONS):
        wrong.append(f"sections must be of {', '.join(SECTIONS)}, got {', '.join(config.sections) or 'none'}")
    if wrong:
        raise ValueError("; ".join(wrong))


def main(config: BenchmarkConfig) -> dict:
    """Measures the sections; prints them and writes the JSON file if one is wanted."""
    check(config)
    settings = {name: value for name, value in asdict(config).items() if name != "json"}
    report = {"machine": platform.processor() or platform.machine(), "av": av.__version__, "h5py": h5py.__version__,
              "torch": torch.__version__, **settings}
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), config.clips)
        for name in config.sections:
            measure, show = SECTIONS[name]
            report[name] = measure(corpus, config)
            show(report[name])
    write_report(report, config.json)
    return report


if __name__ == "__main__":
    import tyro

    main(tyro.cli(BenchmarkConfig))
