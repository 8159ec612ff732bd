"""Cuts collected videos into clips of one kind, drops what teaches nothing, and divides the rest by source video.

    python training/prepare.py --collected corpus/collected.csv --output prepared       # the same again: goes on

Writes into the output folder: clips/<id>.mp4 (shorter side 256, 15 fps, h264 with a key frame every 15 frames, mono
aac); manifest.csv with a line for every clip that is kept; dropped.csv with the reason of every other; journal.jsonl,
what was measured of every clip that was ever made, so that no run, with other thresholds either, makes one twice.

A clip is a near-duplicate if its pictures and its sound are those of an earlier clip; copies that are shifted in time
or mirrored are not found. A rest of a longer video that is shorter than `least_seconds` is left out.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
from scipy.fft import dctn
from tqdm import tqdm

from avssl_ros import features
from training.collect import SPLITS, Journal, ffmpeg_program, run_parallel, write_table

MANIFEST = ("id", "file", "source", "start", "duration", "fps", "width", "height", "sample_rate", "split", "labels",
            "sha256", "bytes")  # fmt: skip
DROPPED = ("id", "source", "start", "reason")
RECIPE = 1  # changes whenever other bytes or measurements come of the same video: clips are made anew
HASH_FRAMES, HASH_SIDE = 4, 8
SOUND_BANDS = (100.0, 300.0, 700.0, 1500.0, 3000.0, 6000.0)  # Hz, edges
SOUND_STEPS = 32
NO_SOUND, NO_PICTURE, DAMAGED, SHORT = "no sound track", "no picture", "damaged", "too short"
SILENT, STILL, DUPLICATE, UNREADABLE = "constant silence", "still pictures", "near-duplicate", "cannot be opened"
FULL = (errno.ENOSPC, errno.EDQUOT)  # of the disk: no clip can be made
# These may be of the machine or of a damaged file, which nothing tells apart: the next run tries again.
PASSING = (errno.EIO, errno.ENOMEM, errno.ENFILE, errno.EMFILE, errno.ESTALE)
# Signals that a decoder ends itself with at a damaged video; others come from outside and say nothing of the video.
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS)


@dataclass(frozen=True)
class PrepareConfig:
    """How clips are cut, which are dropped, and how the rest is divided."""

    collected: Path  # table that training/collect.py has written
    output: Path
    clip_seconds: float = 10.0  # longer videos are cut into clips of this length
    least_seconds: float = 2.0
    side: int = 256  # pixels, the shorter one
    fps: int = 15
    key_every: int = 15  # frames
    quality: int = 23  # crf of x264, lower is better and larger
    sample_rate: int = features.SAMPLE_RATE  # Hz
    sound_rate: int = 64000  # bits a second
    silence_db: float = -60.0  # of full scale: a clip whose loudest 100 ms are below it is silent
    motion: float = 1.0  # grey levels: standard deviation in time of the liveliest hundredth of the picture
    picture_distance: float = 0.15  # share of differing bits below which pictures are the same
    sound_distance: float = 0.3  # and sounds
    validation_share: float = 0.1  # of the sources of no named split; of those named train if none is named validation
    test_share: float = 0.1
    workers: int = len(os.sched_getaffinity(0))  # of the cores those that a job may use
    timeout: float = 300.0  # seconds for one clip


@dataclass(frozen=True)
class Clip:
    """A piece of a collected file; `start` and `seconds` within the file."""

    id: str
    file: Path
    source: str
    start: float
    seconds: float
    source_start: float
    labels: str
    key: str  # of the piece, the file's state and all that decides about the clip's bytes


# ---------------------------------------------------------------------------------------------------------------- plan


def read_collected(path: Path) -> list[dict]:
    """Rows of collected.csv with times as numbers and `file` as a path.

    Raises:
        FileNotFoundError, ValueError: a missing file or column, a split that is none, an id that is no file name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: training/collect.py makes it")
    rows = []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        missing = {"id", "file", "start", "end", "label", "split", "source"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the columns {sorted(missing)}: training/collect.py writes them")
        for row in reader:
            if not row["id"] or row["id"].startswith(".") or "/" in row["id"] or "\0" in row["id"]:
                raise ValueError(f"{path} has the id {row['id']!r}, which is no file name")
            if row["split"] not in SPLITS:
                raise ValueError(f"{path} has the split {row['split']!r}; wanted is train, validation, test or none")
            if re.search("[\udc80-\udcff]", f"{row['id']}{row['source']}{row['label']}"):
                raise ValueError(f"{path} has a line that is no UTF-8, {row['id']!r}; only names of files may be that")
            row["split"], row["file"] = SPLITS[row["split"]], path.parent / row["file"]
            for column in ("start", "end", "source_start"):
                row[column] = float(row[column]) if row.get(column) else None
            rows.append(row)
    return rows


def choose_splits(rows: list[dict], validation_share: float, test_share: float) -> dict[str, str]:
    """Split of every source: the one that the list names (of several the one kept furthest from training), else by
    a hash of its name, which stays the same whatever else is in the list. Sources of one recording have one split.

    Where the list names no source validation (VGGSound's knows train and test alone), the same hash takes
    `validation_share` of those named train: training needs such a split.
    """
    named: dict[str, set[str]] = {}
    whole = {row["source"]: row.get("recording") or row["source"] for row in rows}
    for row in rows:
        named.setdefault(whole[row["source"]], set()).add(row["split"])
    lacking = not any("validation" in found for found in named.values())
    splits = {}
    for name, found in named.items():
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        drawn = "test" if number < test_share else "validation" if number < test_share + validation_share else "train"
        split = next((split for split in ("test", "validation", "train") if split in found), drawn)
        splits[name] = drawn if lacking and (split, drawn) == ("train", "validation") else split
    return {source: splits[name] for source, name in whole.items()}


def probe(path: Path) -> dict:
    """{"seconds": length of the pictures} of a video, or why no clip can be made of it, as `make` says it."""
    try:
        with av.open(str(path)) as container:
            pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not pictures:
                return {"problem": NO_PICTURE}
            if not container.streams.audio:
                return {"problem": NO_SOUND}
            stream = pictures[0]
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            return {"seconds": seconds} if seconds > 0 else {"problem": DAMAGED}
    except (av.FFmpegError, ValueError) as error:
        return problem_of(getattr(error, "errno", None))


def problem_of(code: int | None) -> dict:
    """What `make` returns where reading a video ended with this errno."""
    if code in PASSING:
        return {"problem": os.strerror(code).lower(), "passing": True}
    return {"problem": DAMAGED}


def cut(row: dict, seconds: float, config: PrepareConfig) -> list[tuple[float, float]]:
    """Start and length of every clip of a row, in the file; none where it is too short."""
    begin = row["start"] or 0.0
    left = min(seconds if row["end"] is None else row["end"], seconds) - begin
    # Containers give lengths that are some frames off: such a rest is no clip of its own.
    count = int(np.ceil(max(0.0, left - 2 / config.fps) / config.clip_seconds))
    pieces = [(begin + i * config.clip_seconds, min(config.clip_seconds, left - i * config.clip_seconds))
              for i in range(count)]  # fmt: skip
    least = config.least_seconds - 2 / config.fps
    return [piece for piece in pieces if piece[1] >= least]


# ---------------------------------------------------------------------------------------------------------------- make


def ffmpeg_command(program: str, clip: Clip, target: Path, config: PrepareConfig) -> list[str]:
    """Arguments that cut and normalise one clip; the same input gives the same bytes."""
    side = config.side
    ratio = "iw*sar/ih"  # as seen: pixels need not be square
    scale = (f"scale=w='if(lt({ratio},1),{side},2*round({side}*{ratio}/2))'"
             f":h='if(lt({ratio},1),2*round({side}/({ratio})/2),{side})':flags=area,setsar=1")  # fmt: skip
    seconds = f"{clip.seconds:.3f}"
    return [
        program, "-nostdin", "-hide_banner", "-v", "error", "-xerror", "-y",
        "-ss", f"{clip.start:.3f}", "-t", seconds, "-threads", "1", "-i", f"file:{clip.file}",
        "-map", "0:V:0", "-map", "0:a:0", "-t", seconds, "-map_metadata", "-1", "-map_chapters", "-1",
        "-vf", f"fps={config.fps}:start_time=0,{scale},format=yuv420p",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", str(config.quality), "-threads", "1",
        "-g", str(config.key_every), "-keyint_min", str(config.key_every), "-sc_threshold", "0",
        "-af", "aresample=async=1:first_pts=0,apad", "-c:a", "aac", "-ac", "1", "-ar", str(config.sample_rate),
        "-b:a", str(config.sound_rate), "-fflags", "+bitexact", "-flags", "+bitexact",
        "-movflags", "+faststart", "-f", "mp4", f"file:{target}",
    ]  # fmt: skip


def make(clip: Clip, target: Path, program: str, config: PrepareConfig) -> dict:
    """Writes the clip to `target` and measures it: what the manifest and the decision to drop it need.

    Returns:
        {"problem": reason} where ffmpeg can't read the video or crashes at it, with "passing": True where another run
        may be luckier, or else duration (s), fps, width, height, sample_rate, level (dB), motion (grey levels),
        pictures and sound (hex of hash bits), sha256, bytes.

    Raises:
        OSError: the disk or the quota is full, or ffmpeg was killed.
    """
    command = ffmpeg_command(program, clip, target, config)
    try:
        # A session of its own: Ctrl-C must not make a video look damaged.
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=config.timeout,
                              start_new_session=True)  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": f"took longer than {config.timeout:g} s", "passing": True}
    said = [code for code in (*FULL, *PASSING) if os.strerror(code).encode() in done.stderr]
    if set(said) & set(FULL):
        raise OSError(f"the disk of {target.parent} is full, or your share of it: free some space and start again, it "
                      "goes on where it was")
    if -done.returncode in CRASHES:
        return {"problem": DAMAGED}
    if done.returncode < 0:
        raise OSError(f"ffmpeg was killed by signal {-done.returncode} at {clip.file}: start again, it goes on there")
    if done.returncode > 0:
        return problem_of(said[0] if said else None)
    try:
        measured = measure(target)
    except (av.FFmpegError, ValueError) as error:
        return problem_of(getattr(error, "errno", None))
    if measured.get("duration", clip.seconds) < 0.9 * clip.seconds - 1 / config.fps:
        return {"problem": DAMAGED}
    return measured


def measure(path: Path) -> dict:
    """See `make`."""
    grey, sound, size = [], [], (0, 0)
    with av.open(str(path)) as container:
        pictures, voice = container.streams.video[0], container.streams.audio[0]
        fps, rate = float(pictures.average_rate), voice.rate
        for frame in container.decode(pictures, voice):
            if isinstance(frame, av.VideoFrame):
                size = frame.width, frame.height
                grey.append(frame.reformat(32, 32, "gray", interpolation="AREA").to_ndarray())
            else:
                sound.append(frame.to_ndarray()[0])
    if not grey or not sound:
        return {"problem": DAMAGED}
    data, grey, sound = path.read_bytes(), np.stack(grey).astype(np.float32), np.concatenate(sound)
    return {
        "duration": round(len(grey) / fps, 3), "fps": fps, "width": size[0], "height": size[1], "sample_rate": rate,
        "level": sound_level(sound, rate),
        "motion": round(float(np.percentile(grey.std(axis=0), 99)), 3),
        "pictures": np.packbits(picture_bits(grey)).tobytes().hex(),
        "sound": np.packbits(sound_bits(sound, rate)).tobytes().hex(),
        "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
    }  # fmt: skip


def sound_level(samples: np.ndarray, rate: int) -> float:
    """RMS of the loudest 100 ms in dB of full scale, at least -200: JSON has no infinity."""
    # A constant offset is silence too, but for its beginning and end, which a codec makes ring.
    edge = min(rate // 10, len(samples) // 4)
    middle = samples[edge : len(samples) - edge]
    return round(max(-200.0, features.loudest_block_db(middle - middle.mean())), 2)


def picture_bits(grey: np.ndarray) -> np.ndarray:
    """Perceptual hash of frames (n, 32, 32): (HASH_FRAMES * 64,) bool, low frequencies of the cosine transform above
    their median, of frames spread over the clip."""
    chosen = grey[((np.arange(HASH_FRAMES) + 0.5) / HASH_FRAMES * len(grey)).astype(int)]
    low = dctn(chosen, axes=(1, 2), norm="ortho")[:, :HASH_SIDE, :HASH_SIDE].reshape(HASH_FRAMES, -1)
    return (low > np.median(low, axis=1, keepdims=True)).ravel()


def sound_bits(samples: np.ndarray, rate: int) -> np.ndarray:
    """Hash of the sound's envelopes: ((bands - 1) * (SOUND_STEPS - 1),) bool, whether the level of a band rises more
    than that of the next one from one step to the next (Haitsma & Kalker 2002, with wide bands and long steps)."""
    step = max(64, len(samples) // SOUND_STEPS)
    blocks = np.pad(samples, (0, max(0, step * SOUND_STEPS - len(samples))))[: step * SOUND_STEPS]
    power = np.square(np.abs(np.fft.rfft(blocks.reshape(SOUND_STEPS, step), axis=1)))
    edges = np.searchsorted(np.fft.rfftfreq(step, 1 / rate), SOUND_BANDS)
    bands = np.stack([power[:, low : max(high, low + 1)].sum(axis=1) for low, high in pairwise(edges)])
    return (np.diff(np.diff(np.log(bands + 1e-6), axis=0), axis=1) > 0).ravel()


# ---------------------------------------------------------------------------------------------------------------- judge


def judge(measured: dict, config: PrepareConfig) -> str | None:
    """Why a clip is dropped, seen by itself, or None."""
    if "problem" in measured:
        return measured["problem"]
    if measured["level"] < config.silence_db:
        return SILENT
    return STILL if measured["motion"] < config.motion else None


def near_duplicates(measured: list[dict], config: PrepareConfig, block: int = 2048) -> list[int | None]:
    """For each clip the index of the earlier, kept clip that it repeats, or None. All pairs are compared."""
    bits = [np.array([np.unpackbits(np.frombuffer(bytes.fromhex(m[name]), np.uint8)) for m in measured], np.float32)
            for name in ("pictures", "sound")]  # fmt: skip
    signs = [2 * array - 1 for array in bits]
    first: list[int | None] = [None] * len(measured)
    for begin in range(0, len(measured), block):
        for other in range(0, begin + 1, block):
            same = np.True_
            for sign, most in zip(signs, (config.picture_distance, config.sound_distance), strict=True):
                # The product of two vectors of signs is the number of equal bits less that of different ones.
                distance = 0.5 - sign[begin : begin + block] @ sign[other : other + block].T / (2 * sign.shape[1])
                same = same & (distance <= most)
            for i, j in np.argwhere(same):
                later, earlier = begin + int(i), other + int(j)
                if earlier < later and first[later] is None and first[earlier] is None:
                    first[later] = earlier
    return first


# ----------------------------------------------------------------------------------------------------------------- run


class _Run:
    """What the workers of one run share: what is known of files and clips, and the folder."""

    def __init__(self, config: PrepareConfig, journal: Journal):
        self.config, self.journal, self.program = config, journal, ffmpeg_program()
        self.stop = threading.Event()
        self.folder = config.output / "clips"
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("*.partial"):
            left.unlink()
        self.known = {entry["key"]: entry for entry in journal.entries if "key" in entry}
        self.dropped: list[dict] = []
        recipe = (RECIPE, config.side, config.fps, config.key_every, config.quality, config.sample_rate,
                  config.sound_rate)  # fmt: skip
        self.recipe = json.dumps(recipe)

    def path(self, clip: Clip) -> Path:
        return self.folder / f"{clip.id}.mp4"

    def learn(self, key: str, facts: dict) -> dict:
        """Known from now on, and to later runs unless these may find something else."""
        self.known[key] = {"key": key, **facts}
        if not facts.get("passing"):
            self.journal.append(self.known[key])
        return self.known[key]

    def drop(self, name: str, source: str, start: float, reason: str) -> None:
        self.dropped.append({"id": name, "source": source, "start": round(start, 3), "reason": reason})

    def refuse(self, clip: Clip, reason: str) -> None:
        self.path(clip).unlink(missing_ok=True)
        self.drop(clip.id, clip.source, clip.source_start, reason)

    def plan(self, row: dict) -> list[Clip]:
        """The clips of a row of collected.csv; where there are none the reason is in `dropped`."""
        begin, source_start = row["start"] or 0.0, row["source_start"] or 0.0
        try:
            with open(row["file"], "rb") as file:
                file.read(1)
                state = os.fstat(file.fileno())
        except OSError:  # not noted in the journal: it may come back
            self.drop(row["id"], row["source"], source_start + begin, UNREADABLE)
            return []
        file_key = _digest(str(row["file"].resolve()), state.st_size, state.st_mtime_ns)
        facts = self.known.get(file_key) or self.learn(file_key, probe(row["file"]))
        pieces = cut(row, facts["seconds"], self.config) if "seconds" in facts else []
        if not pieces:
            self.drop(row["id"], row["source"], source_start + begin, facts.get("problem", SHORT))
        return [
            Clip(f"{row['id']}-{round(1000 * (source_start + start)):07d}", row["file"], row["source"], start, seconds,
                 source_start + start, row["label"], _digest(file_key, round(start, 3), round(seconds, 3), self.recipe))
            for start, seconds in pieces
        ]  # fmt: skip

    def clip(self, clip: Clip) -> list[str]:
        """Makes a clip, or measures again one that was not kept; it gets its name only if nothing speaks against it."""
        if self.stop.is_set():
            return []
        partial = self.folder / f"{clip.id}.{os.getpid()}.partial"
        try:
            measured = make(clip, partial, self.program, self.config)
            if judge(measured, self.config) is None:
                os.replace(partial, self.path(clip))
        finally:
            partial.unlink(missing_ok=True)
        self.learn(clip.key, measured)
        return ["made"]

    def is_there(self, clip: Clip) -> bool:
        path = self.path(clip)
        return path.is_file() and path.stat().st_size == self.known[clip.key]["bytes"]

    def make_all(self, clips: list[Clip]) -> int:
        tasks = [lambda clip=clip: self.clip(clip) for clip in clips]
        return run_parallel(self.config.workers, tasks, self.stop, "clip")["made"] if tasks else 0

    def good(self, clips: list[Clip]) -> Iterator[Clip]:
        """The clips that nothing but another clip may speak against; the reasons of the others are in `dropped`."""
        for clip in clips:
            reason = judge(self.known[clip.key], self.config)
            if reason is None:
                yield clip
            else:
                self.refuse(clip, reason)

    def select(self, clips: list[Clip]) -> Iterator[Clip]:
        """The clips that are kept; the reasons of the others are in `dropped`."""
        good = list(self.good(clips))
        twins = near_duplicates([self.known[clip.key] for clip in good], self.config)
        for clip, twin in zip(good, twins, strict=True):
            if twin is None:
                yield clip
            else:
                self.refuse(clip, f"{DUPLICATE} of {good[twin].id}")

    def line(self, clip: Clip, split: str) -> dict:
        """Of the manifest."""
        return {**self.known[clip.key], "id": clip.id, "file": f"clips/{clip.id}.mp4", "source": clip.source,
                "start": round(clip.source_start, 3), "split": split, "labels": clip.labels}  # fmt: skip


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _distinct(clips: list[Clip]) -> list[Clip]:
    """One clip for each id: rows that name the same piece of a video twice, with different ends, are one."""
    return list({clip.id: clip for clip in reversed(clips)}.values())[::-1]


def prepare(config: PrepareConfig) -> dict[str, int]:
    """Makes the clips that are not there yet, and the tables.

    Returns:
        Number of "sources" and "clips" there are, of clips "made" in this run and "kept", of kept ones by split, and
        of dropped ones by reason.

    Raises:
        FileNotFoundError, ValueError: the table of collected videos is missing or wrong.
        OSError: the disk is full, or another process works in the output folder.
    """
    shares = (config.validation_share, config.test_share)
    if min(shares) < 0 or sum(shares) > 1:
        raise ValueError(f"validation_share and test_share are {shares}; wanted is 0 to 1, together at most 1")
    if config.clip_seconds < config.least_seconds:
        raise ValueError(f"clip_seconds is {config.clip_seconds}, less than least_seconds ({config.least_seconds})")
    rows = read_collected(config.collected)
    splits = choose_splits(rows, config.validation_share, config.test_share)
    with Journal(config.output / "journal.jsonl") as journal:
        run = _Run(config, journal)
        with ThreadPoolExecutor(config.workers) as pool:  # on a network disk opening a file is mostly waiting
            planned = list(tqdm(pool.map(run.plan, rows), total=len(rows), unit="file"))
        clips = _distinct([clip for row in planned for clip in row])
        made = run.make_all([clip for clip in clips if clip.key not in run.known])
        kept = list(run.select(clips))
        # One that an earlier run has dropped by another threshold, or that was lost.
        lost = [clip for clip in kept if not run.is_there(clip)]
        made += run.make_all(lost)
        kept = list(run.good(kept))  # making a lost one may fail
        lines = [run.line(clip, splits[clip.source]) for clip in kept]
        dropped = sorted(run.dropped, key=lambda entry: (entry["source"], entry["start"], entry["id"]))
        write_table(config.output / "dropped.csv", DROPPED, dropped)
        write_table(config.output / "manifest.csv", MANIFEST, lines)
    if lines and "validation" not in {line["split"] for line in lines}:
        print("No clip that is kept is of the split validation, which train.py and calibrate.py need: start again with "
              f"a --validation-share above {config.validation_share:g}, or name that split in the list. Clips are not "
              "made anew for it.", file=sys.stderr)
    reasons = Counter(entry["reason"].split(" of ")[0] for entry in dropped)
    return {
        "sources": len(splits), "clips": len(clips), "made": made, "kept": len(kept),
        **{f"kept: {split}": number for split, number in sorted(Counter(line["split"] for line in lines).items())},
        **{f"dropped: {reason}": number for reason, number in sorted(reasons.items())},
    }  # fmt: skip


if __name__ == "__main__":
    import tyro

    result = prepare(tyro.cli(PrepareConfig))
    print("\n".join(f"{number:8d} {what}" for what, number in result.items()))
