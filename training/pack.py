"""Packs prepared clips into a few large HDF5 shards, checks them and reads them: a network disk hates small files.

    python training/pack.py pack --prepared prepared --output shards     # the same again: resumes
    python training/pack.py verify --shards shards                       # reads everything; exit status 1 if damaged
    python training/pack.py stats --shards shards

A shard `<split>-<number>.h5` holds `bytes`, one contiguous uint8 dataset of mp4 files end to end; `offset`, int64
(n + 1), where each begins; and `clips`, a table of n rows: id, source, start, duration, fps, width, height,
sample_rate, labels, crc32 and sha256. `shards.json` beside them lists the shards, so that a missing one is noticed. A
shard gets its name only when it is whole and on the disk.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

FORMAT, VERSION = "avssl clips", 1
SPLITS = ("train", "validation", "test")
INDEX = "shards.json"
BLOCK = 1 << 23  # bytes that are in memory at a time while packing
NUMBERS = {"start": "f8", "duration": "f8", "fps": "f8", "width": "i4", "height": "i4", "sample_rate": "i4"}
TEXTS = ("id", "source", "labels")
NEEDED = (*TEXTS, *NUMBERS, "file", "split", "sha256", "bytes")  # columns of manifest.csv


class DamagedClip(ValueError):
    """The stored bytes of one clip are not what was packed; the text names shard and clip and says what to do."""


@dataclass(frozen=True)
class Pack:
    """Packs prepared clips; whole shards that hold the right clips are kept."""

    prepared: Path  # folder with manifest.csv and clips/, written by training/prepare.py
    output: Path  # folder of the shards
    shard_bytes: float = 2e9  # a shard holds 0.5 to 1.5 times as much, or all of a smaller split


@dataclass(frozen=True)
class Verify:
    """Reads every clip and lists the damaged ones; exit status 1 if there are any."""

    shards: Path  # folder or one shard


@dataclass(frozen=True)
class Stats:
    """Counts, hours and bytes by split and by label."""

    shards: Path  # folder or one shard


@dataclass(frozen=True)
class Clip:
    """One clip: `start` and `duration` in seconds of its `source` video, `sample_rate` in Hz, `sha256` in hex."""

    id: str
    source: str
    labels: tuple[str, ...]
    start: float
    duration: float
    fps: float
    width: int
    height: int
    sample_rate: int
    split: str
    sha256: str
    bytes: int
    file: Path  # the mp4 file, or the shard that holds it
    crc32: int = 0


def read_manifest(prepared: Path) -> list[Clip]:
    """Clips of a prepared folder in the order of its manifest.

    Raises:
        FileNotFoundError: without manifest.csv.
        ValueError: where a column is missing, a value does not parse, an id comes twice or there is no clip.
    """
    path = Path(prepared) / "manifest.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give --prepared the folder that training/prepare.py wrote")
    clips, seen = [], set()
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; run training/prepare.py again")
        for row in reader:
            clip = _clip_of_row(row, Path(prepared), f"{path}, line {reader.line_num}")
            if clip.id in seen:
                raise ValueError(f"{path}, line {reader.line_num}: clip {clip.id!r} comes twice; ids must be unique")
            seen.add(clip.id)
            clips.append(clip)
    if not clips:
        raise ValueError(f"{path} lists no clips: there is nothing to pack")
    return clips


def _clip_of_row(row: dict[str, str], prepared: Path, where: str) -> Clip:
    if row["split"] not in SPLITS:
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {row['split']!r}")
    try:
        numbers = {name: (float if kind == "f8" else int)(row[name]) for name, kind in NUMBERS.items()}
        if len(bytes.fromhex(row["sha256"])) != 32 or int(row["bytes"]) < 1:
            raise ValueError(f"sha256 {row['sha256']!r} or bytes {row['bytes']} cannot be of a file")
        return Clip(row["id"], row["source"], _names(row["labels"] or ""), **numbers, split=row["split"],
                    sha256=row["sha256"].lower(), bytes=int(row["bytes"]), file=prepared / row["file"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}; run training/prepare.py again") from None


def plan(clips: list[Clip], shard_bytes: float) -> dict[str, list[Clip]]:
    """Shard names and their clips. Clips appended to a manifest change only the last two shards of a split."""
    if not shard_bytes > 0:
        raise ValueError(f"shard_bytes must be > 0, got {shard_bytes}")
    shards = {}
    for split in SPLITS:
        groups, size = [], 0
        for clip in (clip for clip in clips if clip.split == split):
            if not groups or size >= shard_bytes:
                groups, size = [*groups, []], 0
            groups[-1].append(clip)
            size += clip.bytes
        if len(groups) > 1 and size < shard_bytes / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
        shards |= {f"{split}-{number:05d}.h5": group for number, group in enumerate(groups)}
    return shards


def pack(config: Pack) -> dict:
    """Writes the shards that are not there yet, then shards.json; prints and returns what was done.

    Clips whose file is missing or differs from the manifest are left out and named with the reason; the run goes on.

    Returns:
        {"written": [shard], "kept": [shard], "clips": n, "bytes": n, "dropped": {id: reason}}

    Raises:
        FileNotFoundError, ValueError: on an unusable manifest, or a file in `output` that must not be overwritten.
        OSError: on a full or unwritable disk. What is whole by then stays; the next run goes on from there.
    """
    shards = plan(read_manifest(config.prepared), config.shard_bytes)
    report = {"written": [], "kept": [], "clips": 0, "bytes": 0, "dropped": {}}
    config.output.mkdir(parents=True, exist_ok=True)
    with _only_writer(config.output):
        _refuse_strangers(config.output, shards)
        _remove_partial(config.output)
        total = sum(clip.bytes for clips in shards.values() for clip in clips)
        with tqdm(total=total, unit="B", unit_scale=True, desc="pack", mininterval=1.0) as progress:
            for name, clips in shards.items():
                held = _held(config.output / name, clips)
                stored, dropped = held or _write_shard(config.output / name, clips, progress)
                progress.update(sum(clip.bytes for clip in clips if held or clip.id in dropped))
                report["kept" if held else "written"] += [name] if stored else []
                report["clips"] += len(stored)
                report["dropped"] |= dropped
        report["bytes"] = _write_index(config.output, report["written"] + report["kept"])
    print(f"{report['clips']} clips, {report['bytes'] / 1e9:.3f} GB in {config.output}; shards: "
          f"{len(report['written'])} written, {len(report['kept'])} kept; {len(report['dropped'])} clips dropped")
    for name, reason in report["dropped"].items():
        print(f"  dropped {name}: {reason}")
    return report


@contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    with open(output / ".pack.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            raise OSError(f"another pack is writing to {output}: wait until it has ended") from None
        except OSError:
            pass  # some network disks have no locks: there only the user sees to it
        yield


def _refuse_strangers(output: Path, shards: dict[str, list[Clip]]) -> None:
    """A shard of another plan would be read together with the new ones; a foreign file would be lost."""
    left = sorted(path.name for path in output.glob("*.h5") if path.name not in shards)
    if left:
        raise ValueError(f"{output} holds {', '.join(left[:5])}, which this manifest and --shard-bytes do not make: "
                         "delete them or give another --output")
    for name in shards:
        if (output / name).exists():
            _read_shard(output / name)


def _remove_partial(output: Path) -> None:
    for path in output.glob("*.h5.partial"):
        path.unlink()


def _held(path: Path, clips: list[Clip]) -> tuple[set[str], dict[str, str]] | None:
    """Ids in the shard and {id: reason} of those missing, if the shard already holds what it should; else None.

    All columns, checksums included, must be those of the manifest; only clips that cannot be read now may be missing.
    """
    if not path.exists():
        return None
    _, _, offset, table = _read_shard(path)
    stored = {name.decode() for name in table["id"].tolist()}
    wanted = [clip for clip in clips if clip.id in stored]
    if len(wanted) != len(table) or not np.array_equal(_table(wanted, table["crc32"]), table):
        return None
    dropped = {clip.id: _complaint(clip) for clip in clips if clip.id not in stored}
    return (stored, dropped) if all(dropped.values()) and np.array_equal(offset, _offsets(wanted)) else None


def _complaint(clip: Clip) -> str | None:
    """What is wrong with a prepared mp4 file, or None."""
    try:
        for _ in _stream(clip):
            pass
    except DamagedClip as error:
        return str(error)
    return None


def _stream(clip: Clip) -> Iterator[bytes]:
    """The mp4 file in blocks. Raises DamagedClip, at its end at the latest, if it is not the file of the manifest."""
    again = "run training/prepare.py again"
    digest, size = hashlib.sha256(), 0
    try:
        with open(clip.file, "rb") as file:
            if os.fstat(file.fileno()).st_size != clip.bytes:
                raise DamagedClip(f"{clip.file} is not the {clip.bytes} bytes of the manifest; {again}")
            while block := file.read(min(BLOCK, clip.bytes - size)):
                digest.update(block)
                size += len(block)
                yield block
    except OSError as error:
        raise DamagedClip(f"{clip.file} cannot be read ({error.strerror}); {again}") from None
    if size != clip.bytes or digest.hexdigest() != clip.sha256:
        raise DamagedClip(f"{clip.file} does not have the sha256 of the manifest; {again}")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` at the end, on the disk, or is removed."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: h5py, of a file that cannot be closed
        raise OSError(f"cannot write {path} ({error}): make room or give another --output, then run the same command "
                      "again; whole shards are kept") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _write_shard(path: Path, clips: list[Clip], progress: tqdm) -> tuple[set[str], dict[str, str]]:
    """Writes one shard and returns the ids in it and {id: reason} of those left out."""
    dropped = {}
    (path.parent / INDEX).unlink(missing_ok=True)  # old and new shards are not to be read together
    while clips:
        try:
            with _whole(path) as partial:
                _fill_shard(partial, clips, progress)
            break
        except _Unusable as error:  # the place of the others changes: begin again without it
            dropped[error.clip.id] = str(error.__cause__)
            clips = [clip for clip in clips if clip.id != error.clip.id]
    return {clip.id for clip in clips}, dropped


class _Unusable(Exception):
    """Carries the clip that cannot be packed; its cause says why."""

    def __init__(self, clip: Clip):
        self.clip = clip


def _fill_shard(path: Path, clips: list[Clip], progress: tqdm) -> None:
    """Creates the file with `bytes` at its full size, streams the mp4 files into it, then adds the table."""
    offset = _offsets(clips)
    with h5py.File(path, "w", libver="earliest", locking=False) as file:
        file.attrs.update({"format": np.bytes_(FORMAT), "version": VERSION, "split": np.bytes_(clips[0].split)})
        file["offset"] = offset
        begin = _create_bytes(file, int(offset[-1]))
    checksums = []
    with open(path, "r+b") as file:  # plain writes: a full disk is then an OSError and never a broken HDF5 library
        file.seek(begin)
        for clip in clips:
            checksum = 0
            try:
                for block in _stream(clip):
                    checksum = zlib.crc32(block, checksum)
                    file.write(block)
                    progress.update(len(block))
            except DamagedClip as error:
                progress.update(begin - file.tell())
                raise _Unusable(clip) from error
            checksums.append(checksum)
    with h5py.File(path, "r+", libver="earliest", locking=False) as file:
        file.create_dataset("clips", data=_table(clips, checksums), compression="gzip", shuffle=True)


def _create_bytes(file: h5py.File, size: int) -> int:
    """Reserves the contiguous dataset without writing it; returns where it begins in the file."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((size,))
    return h5py.h5d.create(file.id, b"bytes", h5py.h5t.NATIVE_UINT8, space, creation).get_offset()


def _offsets(clips: list[Clip]) -> np.ndarray:
    return np.cumsum([0, *(clip.bytes for clip in clips)], dtype=np.int64)


def _table(clips: list[Clip], checksums: Iterable[int]) -> np.ndarray:
    """The compound `clips` table; texts are utf-8 of the longest one's length."""
    rows = [(clip.id, clip.source, "|".join(clip.labels)) for clip in clips]
    columns = {name: [row[i].encode() for row in rows] for i, name in enumerate(TEXTS)}
    types = [(name, h5py.string_dtype("utf-8", max(1, *map(len, column)))) for name, column in columns.items()]
    table = np.zeros(len(clips), np.dtype([*types, *NUMBERS.items(), ("crc32", "u4"), ("sha256", "u1", 32)]))
    for name, column in columns.items():
        table[name] = column
    for name in NUMBERS:
        table[name] = [getattr(clip, name) for clip in clips]
    table["crc32"] = list(checksums)
    table["sha256"] = [list(bytes.fromhex(clip.sha256)) for clip in clips]
    return table


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_index(output: Path, names: list[str]) -> int:
    """Writes shards.json and returns the size of all shards in bytes."""
    sizes = {name: (output / name).stat().st_size for name in sorted(names)}
    with _whole(output / INDEX) as partial:
        partial.write_text(json.dumps({"format": FORMAT, "version": VERSION, "shards": sizes}, indent=1) + "\n")
    return sum(sizes.values())


class _Shard(NamedTuple):
    """What is kept of a shard: its split, where `bytes` begins in the file, `offset` and `clips`."""

    split: str
    begin: int
    offset: np.ndarray
    table: np.ndarray


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"shard {path} is missing: copy it again, or run training/pack.py pack again")


def _read_shard(path: Path) -> _Shard:
    if not path.exists():
        raise _missing(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT.encode():
                raise ValueError(f"{path} is an HDF5 file, but no shard: give the folder that pack.py wrote to")
            if file.attrs["version"] > VERSION:
                raise ValueError(f"{path} has format version {file.attrs['version']}, this program reads {VERSION}: "
                                 "update it")
            split = file.attrs["split"].decode()
            return _Shard(split, file["bytes"].id.get_offset(), file["offset"][()], file["clips"][()])
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is cut off or no HDF5 file ({error}): copy it again, or delete it and run "
                         "training/pack.py pack again") from None


def shard_paths(path: Path, split: str | None = None) -> list[Path]:
    """Shards of a folder (of one split where given) by its shards.json, or the one file that `path` names.

    Raises FileNotFoundError, or ValueError where the folder has no shard of the split.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if path.suffix == ".h5":
        raise _missing(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no shards at {path}: give the folder that training/pack.py wrote to")
    if not (path / INDEX).is_file():
        raise FileNotFoundError(f"{path} has no {INDEX}: training/pack.py has not finished there; run it again")
    names = json.loads((path / INDEX).read_text())["shards"]
    found = [path / name for name in names if split in (None, name.rsplit("-", 1)[0])]
    if not found:
        raise ValueError(f"{path} has no clips of split {split!r}, only {', '.join(names) or 'nothing'}: run "
                         "training/prepare.py again with another --validation-share or --test-share, or a list that "
                         "names this split, then training/pack.py pack")
    return found


class Shards:
    """Clips of packed shards, read at random: `shards.blob(i)` is the mp4 file of clip i, `shards.clip(i)` its row.

    Safe under fork, threads and pickle: files are opened per process when first read and read by position, and nothing
    of HDF5 stays open.

    Args:
        path: folder, one shard, or a list of shards.
        split: of a folder: "train", "validation" or "test"; None for all.

    Raises:
        FileNotFoundError: where the folder or a shard is missing.
        ValueError: where a file is no shard, is cut off, or the split is empty.
    """

    def __init__(self, path: str | Path | list[str | Path], split: str | None = None):
        parts = path if isinstance(path, (list, tuple)) else [path]
        self.paths = [shard for part in parts for shard in shard_paths(Path(part), split)]
        if not self.paths:
            raise ValueError("no shards: give a folder, a shard or a list of shards")
        self._shards = [_read_shard(path) for path in self.paths]
        self._first = np.cumsum([0, *(len(shard.table) for shard in self._shards)])
        self._files = {}  # of this process, by number of the shard

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the shard and row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        return shard, int(index - self._first[shard])

    def clip(self, index: int) -> Clip:
        """The metadata of clip `index`."""
        number, row = self._locate(index)
        shard, path = self._shards[number], self.paths[number]
        values = shard.table[row]
        numbers = {name: values[name].item() for name in NUMBERS}
        return Clip(values["id"].decode(), values["source"].decode(), _names(values["labels"]), **numbers,
                    split=shard.split, sha256=bytes(values["sha256"]).hex(), file=path,
                    bytes=int(shard.offset[row + 1] - shard.offset[row]), crc32=int(values["crc32"]))

    def blob(self, index: int) -> bytes:
        """The mp4 file of clip `index`.

        Raises:
            DamagedClip: if its bytes are not those that were packed, or the disk cannot read them.
            FileNotFoundError: if the shard has gone since.
        """
        number, row = self._locate(index)
        shard, path = self._shards[number], self.paths[number]
        begin, end = shard.offset[row:row + 2].tolist()
        try:
            blob = os.pread(self._file(number).fileno(), end - begin, shard.begin + begin)
            right = zlib.crc32(blob) == shard.table["crc32"][row]
            problem = "" if right else f"the checksum of its {len(blob)} bytes is wrong"
        except FileNotFoundError:
            raise _missing(path) from None
        except OSError as error:
            problem = str(error)
        if problem:
            name = shard.table["id"][row].decode()
            raise DamagedClip(f"clip {name!r} in {path} is damaged ({problem}): copy the shard again, or delete it and "
                              "run training/pack.py pack again")
        return blob

    def _file(self, shard: int):
        if shard not in self._files:
            self._files[shard] = open(self.paths[shard], "rb", buffering=0)
        return self._files[shard]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that a clip carries, sorted."""
        joined = {text for shard in self._shards for text in shard.table["labels"].tolist()}
        return tuple(sorted({label for text in joined for label in _names(text)}))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and checksums of all clips in their order: equal for equal content, wherever it lies."""
        digest = hashlib.sha256()
        for shard in self._shards:
            for name, checksum in zip(shard.table["id"].tolist(), shard.table["sha256"], strict=True):
                digest.update(name + b"\0" + checksum.tobytes())
        return digest.hexdigest()


def _names(labels: str | bytes) -> tuple[str, ...]:
    text = labels.decode() if isinstance(labels, bytes) else labels
    return tuple(label for label in text.split("|") if label)


def verify(config: Verify) -> list[str]:
    """Reads every clip of every shard; prints and returns what is wrong, one text for each shard or clip."""
    problems, count = [], 0
    paths = shard_paths(config.shards)
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="verify", mininterval=1.0) as progress:
        for path in paths:
            try:
                shards = Shards(path)
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            for index in range(len(shards)):
                try:
                    progress.update(len(shards.blob(index)))
                except DamagedClip as error:
                    problems.append(str(error))
            count += len(shards)
    print(*problems, f"{count} clips in {len(paths)} shards read, {len(problems)} problems", sep="\n")
    return problems


def stats(config: Stats) -> dict:
    """Prints and returns {"splits": {split: {...}}, "labels": {label: clips}}."""
    splits, labels = defaultdict(Counter), Counter()
    for path in shard_paths(config.shards):
        shards = Shards(path)
        for clip in map(shards.clip, range(len(shards))):
            splits[clip.split].update(clips=1, hours=clip.duration / 3600, mp4_bytes=clip.bytes)
            labels.update(clip.labels or ["(none)"])
        splits[clip.split].update(shards=1, shard_bytes=path.stat().st_size)
    print(f"{'split':<12}{'shards':>8}{'clips':>10}{'hours':>10}{'GB':>10}  of mp4")
    for split, row in splits.items():
        print(f"{split:<12}{row['shards']:>8}{row['clips']:>10}{row['hours']:>10.2f}{row['shard_bytes'] / 1e9:>10.3f}"
              f"  {row['shard_bytes'] / row['mp4_bytes']:.5f}")
    print(f"\n{'label':<40}{'clips':>8}")
    for label, clips in labels.most_common():
        print(f"{label:<40}{clips:>8}")
    return {"splits": {split: dict(row) for split, row in splits.items()}, "labels": dict(labels)}


def main(config: Pack | Verify | Stats) -> int:
    """Runs one command; returns the exit status."""
    try:
        if isinstance(config, Verify):
            return 1 if verify(config) else 0
        pack(config) if isinstance(config, Pack) else stats(config)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Pack | Verify | Stats)))
