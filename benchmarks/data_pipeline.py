"""What packing clips costs and saves: random windows of frames and sound from four layouts, side by side in one run.

    python benchmarks/data_pipeline.py [--clips 60] [--seconds 1.0] [--json FILE]

Makes mp4 clips (h264 and aac, 256x256, 15 frames a second, 10 s, a key frame a second) of textures that drift over one
another, which compress like real clips, and sound of changing tones and noise. Each layout then decodes the same
windows, in turns, so that a busy machine slows all alike; the figures are medians over the turns. All files are in the
page cache: this measures what a layout costs the processor, not the disk. Raw frames are stored of the first 10 clips
only, since each takes some 15 MB; their bytes ratio is to the mp4 files of those clips.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import cv2
import h5py
import numpy as np
from tqdm import tqdm

from training.clips import decode
from training.pack import NEEDED, Pack, Shards, pack

SIZE, FPS, DURATION, RATE = 256, 15, 10, 32000
RAW_CLIPS = 10  # of which raw frames are stored
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure, on how much."""

    clips: int = 60
    seconds: float = 1.0  # of a window
    windows: int = 60  # a turn and layout
    turns: int = 5
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
    with av.open(str(path), "w") as container:
        options = {"g": str(FPS), "keyint_min": str(FPS), "sc_threshold": "0", "crf": "23", "preset": "veryfast"}
        video = container.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = SIZE, SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for number, picture in enumerate(drifting_pictures(rng)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
            begin, end = (round(n * RATE / FPS) for n in (number, number + 1))
            block = av.AudioFrame.from_ndarray(sound[None, begin:end], format="fltp", layout="mono")
            block.sample_rate, block.pts = RATE, begin
            container.mux(audio.encode(block))
        for stream in (video, audio):
            container.mux(stream.encode())


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
    for bar, met in found["bars"].items():
        print(f"{'met' if met else 'MISSED'}: {bar}")


# ------------------------------------------------------------------------------------------------------- the run

# Each section is a name, what measures it on the shared corpus, and what prints its figures.
SECTIONS: dict[str, tuple[Callable[[Corpus, BenchmarkConfig], dict], Callable[[dict], None]]] = {
    "layouts": (layouts, print_layouts),
}


def main(config: BenchmarkConfig) -> dict:
    """Measures all sections; prints them and writes the JSON file if one is wanted."""
    if config.clips < 1 or config.windows < 1 or config.turns < 1 or not 0 < config.seconds <= DURATION:
        raise ValueError(f"clips, windows and turns must be > 0 and seconds in (0, {DURATION}], got {config}")
    report = {"machine": platform.processor() or platform.machine(), "av": av.__version__, "h5py": h5py.__version__,
              "clips": config.clips, "seconds": config.seconds, "windows": config.windows, "turns": config.turns}
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), config.clips)
        for name, (measure, show) in SECTIONS.items():
            report[name] = measure(corpus, config)
            show(report[name])
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    import tyro

    main(tyro.cli(BenchmarkConfig))
