"""A cache for any map-style dataset: shared memory first, then local disk, shared by all workers and ranks of a node.

    from training.cache import CachedDataset, cache_key, fingerprint
    key = cache_key(source=fingerprint("clips.h5"), frames=15, size=224, code=decode_clip)
    cached = CachedDataset(dataset, key, memory_bytes=16 << 30, disk="/local/scratch", disk_bytes=100 << 30)

    python training/cache.py list  [--disk /local/scratch]               # what is there, and whether it is in use
    python training/cache.py clear [--disk /local/scratch] [--key KEY]   # removes what no process uses

`cached[i]` is `dataset[i]`. The first access reads the source and keeps the item; processes that give the same key find
each other through it, so no item is read twice on a node, and a job that comes later goes on with what is there. This
file needs nothing but numpy and torch and may be copied into any project. Linux only: it builds on the kernel's locks.

What to cache is decided by what is wrapped. Items a second in the second epoch against none cached, and what a corpus
of 160 h takes (57 600 clips of 10 s, shorter side 256, 15 frames a second), by benchmarks/data_pipeline.py; the first
epoch of JPEG frames is slower than without a cache, since all frames of a clip are decoded:

    the wrapped dataset gives                     second epoch  160 h     wrap it when
    mp4 blob, decoded in `transform`              1.0x          15 GB     the network disk is slow; saves reading only
    JPEG frames, decoded in `transform`           2.5x          121 GB    decoding is slow, but windows are random
    finished item (1 frame, 3 s of spectrogram)   50x           16 GB     a clip has one item (272 kB)

Whatever is random in the wrapped dataset is frozen at its first draw: augmentation belongs into `transform`.

Rules:
 - Nothing is evicted. An item goes into memory while it fits into `memory_bytes`, else on disk while it fits into
   `disk_bytes`, else it is read from the source each time. Both limits hold for all processes of the node together, and
   count whole pages of 4 KiB. The control files (locks, counters) take some ten KiB more.
 - A quarter of the shared memory, 64 MiB to 1 GiB, is never filled: the batches of DataLoader workers go through it.
 - Whole or absent: an entry is written under a temporary name and renamed. Its checksum covers every byte; a damaged
   entry is counted, removed and refilled. There is no fsync: what a power cut tears, the checksum finds.
 - All locks are released by the kernel when their holder dies, and lie in shared memory, never on a network disk (in
   `disk`, which must be local, where shared memory can't be used). The source is only read.
 - When the last CachedDataset of a key is closed or dropped, or its process ends, its shared memory is removed; the
   disk part stays unless keep_disk=False. A process killed by a signal removes nothing: the next job goes on with what
   is whole, and `clear` removes what no job will use again.
 - Entries hold JSON and raw buffers, no pickle.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import inspect
import json
import operator
import os
import re
import secrets
import shutil
import stat
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.util import Finalize
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

PREFIX = "avssl-cache"
SHARED_MEMORY = "/dev/shm"
PAGE = 4096
LEAST_LEFT, MOST_LEFT = 64 << 20, 1 << 30  # bytes of the shared memory that are not for the cache, see `_left_free`
RECOUNT_SECONDS = 60.0  # at most this often is a full tier counted anew, in case a killed writer left room

# ---------------------------------------------------------------------------------------------------------------- keys


def cache_key(**parts: Any) -> str:
    """Name of a cache: a hash of everything its items depend on, in any order.

    Args:
        parts: what JSON knows, paths, numbers of numpy, dataclasses, bytes and sets; a function, class or module stands
            for its source text (its own, not that of what it calls).

    Returns:
        20 hexadecimal digits. A changed part gives another key, so that old entries are never served.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_canonical)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _canonical(part: Any) -> Any:
    if isinstance(part, (type, ModuleType)) or inspect.isroutine(part):
        return {"code": inspect.getsource(part)}
    if dataclasses.is_dataclass(part):
        fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return {type(part).__qualname__: fields}
    if isinstance(part, os.PathLike):
        return os.fspath(part)
    if isinstance(part, (np.generic, np.ndarray)):
        return part.tolist()
    if isinstance(part, bytes):
        return {"bytes": part.hex()}
    if isinstance(part, (set, frozenset)):
        return {"set": sorted(part, key=repr)}
    raise TypeError(f"cache_key can't hash {_type_name(part)}; give numbers, text, lists, dicts, paths, dataclasses, "
                    "functions, classes or modules")


def fingerprint(*paths: str | os.PathLike) -> str:
    """Hash of name, size and modification time of files, and of all files below folders; contents are not read."""
    rows = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        elif path.exists():
            files = [path]
        else:
            raise FileNotFoundError(f"{path} does not exist; fingerprint needs the source of the cached items")
        for file in files:
            status = file.stat()
            rows.append([str(file.relative_to(path.parent)), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:20]


# ------------------------------------------------------------------------------------------------------------- entries
# magic, CRC-32 of all that follows | length of the header, of the file | header (JSON) | raw buffers. The header is
# padded with blanks and the buffers with zeros, so that every buffer starts at a multiple of ALIGN.
CHECK = struct.Struct("<8sI")
LENGTHS = struct.Struct("<IQ")
MAGIC = b"AVCACHE1"
ALIGN = 64
SUPPORTED = ("None, bool, int, float, str, bytes, numpy arrays and scalars of plain dtypes, dense CPU tensors without "
             "gradient, and lists, tuples and dicts of these")


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def encode(item: Any) -> tuple[list, int]:
    """The parts of an entry after its checksum, without copying arrays, and the size of the whole entry in bytes."""
    buffers, end = [], 0

    def add(data: bytes | np.ndarray) -> list[int]:
        nonlocal end
        start, padding = end, -len(data) % ALIGN
        buffers.extend((data, bytes(padding)))
        end += len(data) + padding
        return [start, len(data)]

    header = json.dumps(_describe(item, add), separators=(",", ":")).encode()
    header += b" " * (-(CHECK.size + LENGTHS.size + len(header)) % ALIGN)
    size = CHECK.size + LENGTHS.size + len(header) + end
    return [LENGTHS.pack(len(header), size), header, *buffers], size


def _describe(value: Any, add: Callable) -> Any:
    """JSON form of an item: plain values as they are, everything else as an object of one member, its kind."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return {kind.__name__: [_describe(part, add) for part in value]}
    if kind is dict:
        return {"dict": [[_describe(key, add), _describe(part, add)] for key, part in value.items()]}
    if kind is bytes:
        return {"bytes": add(value)}
    if (kind in (np.ndarray, np.memmap) or isinstance(value, np.generic)) and value.dtype.kind in "biufcSUmM":
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return {"scalar" if isinstance(value, np.generic) else "array": [value.dtype.str, value.shape, *add(data)]}
    if kind is torch.Tensor and value.device.type == "cpu" and value.layout is torch.strided:
        if not (value.requires_grad or value.is_quantized):
            data = value.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
            return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), *add(data)]}
    detail = f" ({value.dtype})" if isinstance(value, (np.ndarray, torch.Tensor)) else ""
    raise TypeError(f"the cache can't keep {_type_name(value)}{detail}; an item may be any nest of {SUPPORTED}. "
                    "Convert it in the dataset, and back in `transform` if need be")


def decode(entry: np.ndarray) -> Any:
    """The item of an entry (n,) uint8; its arrays are writable views of `entry`. ValueError if a byte is damaged."""
    head = CHECK.size + LENGTHS.size
    if len(entry) < head:
        raise ValueError(f"the entry has {len(entry)} bytes, fewer than its head")
    magic, checksum = CHECK.unpack_from(entry)
    length, size = LENGTHS.unpack_from(entry, CHECK.size)
    if magic != MAGIC or size != len(entry) or zlib.crc32(entry[CHECK.size :]) != checksum:
        raise ValueError("the entry does not match its checksum")
    return _restore(json.loads(entry[head : head + length].tobytes()), entry[head + length :])


def _restore(node: Any, data: np.ndarray) -> Any:
    if type(node) is not dict:
        return node
    ((kind, body),) = node.items()
    if kind == "list":
        return [_restore(part, data) for part in body]
    if kind == "tuple":
        return tuple(_restore(part, data) for part in body)
    if kind == "dict":
        return {_restore(key, data): _restore(part, data) for key, part in body}
    raw = data[body[-2] : body[-2] + body[-1]]
    if kind == "bytes":
        return raw.tobytes()
    if kind == "tensor":
        return torch.from_numpy(raw).view(getattr(torch, body[0])).reshape(body[1])
    array = raw.view(body[0]).reshape(body[1])
    return array[()] if kind == "scalar" else array


# --------------------------------------------------------------------------------------------------- locks and folders


@contextlib.contextmanager
def _locked(path: str | os.PathLike, byte: int = 0) -> Iterator[int]:
    """Holds one byte of a small file for this call alone: an open file description lock.

    The file is opened anew each time, because threads and forked children would share the lock of an open one.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _set_lock(descriptor, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, byte)
        yield descriptor
    finally:
        # Not left to close(): a child that another thread forks meanwhile has a copy of the descriptor.
        _set_lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)
        os.close(descriptor)


def _set_lock(descriptor: int, command: int, kind: int, byte: int) -> None:
    fcntl.fcntl(descriptor, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0))  # struct flock


def _folder_name(key: str) -> str:
    return f"{PREFIX}-{os.getuid()}-{key}"


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # not exist_ok, which fails where another process removes it meanwhile
        folder.mkdir(mode=0o700)


def _check_folder(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to somebody else", str(folder))


def _attach(home: Path) -> int:
    """Makes the folder and declares its use: the descriptor holds a shared lock until all its copies are closed."""
    while True:
        _make_folder(home)
        with contextlib.suppress(FileNotFoundError):  # its last user removed it this moment: make it again
            _check_folder(home)
            descriptor = os.open(home / "users", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, home / "users"):
                return descriptor
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_unused(home: Path, removable: list[Path], kept: list[Path]) -> bool:
    """Removes folders, and empty ones of `kept`, unless a process is attached to `home`; whether none is."""
    try:
        descriptor = os.open(home / "users", os.O_RDWR)
    except FileNotFoundError:
        return True
    discarded = []
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, home / "users"):
            for folder in kept:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            for folder in sorted(removable, key=lambda folder: folder == home):  # the one with the lock last
                discarded.append(folder.with_name(f"{folder.name}.removed-{secrets.token_hex(4)}"))
                with contextlib.suppress(FileNotFoundError):
                    folder.rename(discarded[-1])
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    for folder in discarded:  # after the lock: a new job of this key need not wait for it
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _detach(users: int, home: Path, removable: list[Path], kept: list[Path]) -> None:
    os.close(users)
    if removable and not _remove_unused(home, removable, kept):
        # Other ranks remove it when they end, but workers of this process may outlive the dataset and be terminated.
        Finalize(None, _remove_unused, (home, removable, kept), exitpriority=-100)


# --------------------------------------------------------------------------------------------------------------- tiers


class _Tier:
    """A folder of entries under one byte limit; its ledger, in `home`, holds the bytes in use and the last recount.

    All changes of the folder are made under the ledger's lock. A reservation is a temporary file of the full length
    whose writer holds a lock on it: one without a lock was left by a killed process.
    """

    LEDGER = struct.Struct("<qq")

    def __init__(self, name: str, folder: Path, limit: int, home: Path):
        self.name, self.folder, self.limit = name, folder, limit
        self.broken, self._prefix = False, f"{folder}{os.sep}"
        self._ledger = home / f"ledger-{name}-{zlib.crc32(os.fsencode(folder.resolve())):08x}"

    def load(self, index: int) -> Any:
        """The item; FileNotFoundError if it is not here, ValueError if it is damaged."""
        descriptor = os.open(f"{self._prefix}{index}.item", os.O_RDONLY)  # text: a Path takes longer than the opening
        try:
            entry = np.empty(os.fstat(descriptor).st_size, np.uint8)
            missing = memoryview(entry)
            while missing and (count := os.readv(descriptor, [missing])):
                missing = missing[count:]
        finally:
            os.close(descriptor)
        return decode(entry)

    def store(self, index: int, parts: list, size: int) -> bool:
        """Writes an entry; False if the limit leaves no room. Whatever is raised, nothing is left behind."""
        temporary, final = self.folder / f"{index}-{secrets.token_hex(4)}.tmp", self.folder / f"{index}.item"
        try:
            descriptor = self._reserve(temporary, size)
            if descriptor is None:
                return False
            with open(descriptor, "wb") as file:
                checksum = 0
                for part in parts:
                    checksum = zlib.crc32(part, checksum)
                file.write(CHECK.pack(MAGIC, checksum))
                for part in parts:
                    file.write(part)
                file.flush()
                with self._change():
                    if not final.exists():  # it does only if the item's lock could not be had
                        temporary.rename(final)
        finally:
            if temporary.exists():
                self._remove(temporary)
        return True

    def _reserve(self, temporary: Path, size: int) -> int | None:
        """Descriptor of a new locked file of `size` bytes that the ledger knows, or None for lack of room."""
        with self._change(_pages(size)) as (used, add):
            if used + _pages(size) > self.limit or not self._leaves_room(_pages(size)):
                return None
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, size)
            add(_pages(size))
            return descriptor

    def _leaves_room(self, size: int) -> bool:
        """Whether `size` bytes more leave to others what shared memory owes them. A full disk only ends the caching."""
        if self.name != "memory":
            return True
        total, free = _extent(self.folder)
        return total == 0 or free - size >= _left_free(total)

    def remove(self, index: int) -> None:
        """Removes a damaged entry."""
        self._remove(self.folder / f"{index}.item")

    def _remove(self, path: Path) -> None:
        with self._change() as (_, add), contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            add(-_pages(size))

    def recount(self) -> None:
        """Sets the ledger by what the folder holds and sweeps what killed writers left."""
        with _locked(self._ledger) as ledger:
            self._recount(ledger)

    def _recount(self, ledger: int) -> int:
        used = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(".item") or (entry.name.endswith(".tmp") and not _swept(entry.path)):
                    used += _pages(entry.stat().st_size)
        os.pwrite(ledger, self.LEDGER.pack(used, time.monotonic_ns()), 0)
        return used

    @contextlib.contextmanager
    def _change(self, wanted: int = 0) -> Iterator[tuple[int, Callable[[int], None]]]:
        """Under the lock: the bytes in use, and a function to add to them. Counts anew if `wanted` bytes do not fit."""
        with _locked(self._ledger) as ledger:
            stored = os.pread(ledger, self.LEDGER.size, 0)
            used, counted = self.LEDGER.unpack(stored) if len(stored) == self.LEDGER.size else (0, None)
            if counted is None or (used + wanted > self.limit
                                   and abs(time.monotonic_ns() - counted) > RECOUNT_SECONDS * 1e9):
                used = self._recount(ledger)
            yield used, lambda size: os.pwrite(ledger, struct.pack("<q", max(0, used + size)), 0)


def _extent(folder: Path) -> tuple[int, int]:
    """Bytes of a file system in all, 0 for a tmpfs without a limit, and those that are free."""
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _left_free(total: int) -> int:
    """Bytes of a tmpfs of `total` bytes that the cache leaves to the batches of DataLoader workers.

    A worker that finds it full dies, and the run with it. 64 MiB is all that Docker gives by itself; six batches of
    10 MB, which a training and a validation worker of training/train.py may have under way, need as much.
    """
    return min(max(total // 4, LEAST_LEFT), MOST_LEFT)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _swept(path: str) -> bool:
    """Removes a temporary file unless its writer is alive."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------------------- dataset


class CachedDataset(Dataset):
    """`dataset` with its items cached by shared memory and local disk; see the top of this file.

    Args:
        dataset: any map-style dataset. An item may be any nest of None, bool, int, float, str, bytes, numpy arrays and
            scalars, CPU tensors, lists, tuples and dicts; TypeError for anything else. If it has `item_bytes(i)`, that
            is what a read of item i adds to `source_bytes`, else the size of the entry.
        key: letters, digits, "-" and "_", as `cache_key` makes them; one key stands for one list of items. Datasets
            that differ in anything (split, order, decoding, code) need different keys.
        memory_bytes, disk_bytes: limits for all processes of this node together; 0 leaves the tier out.
        disk: folder on a local disk.
        transform: applied to each item after the cache, every time anew: random augmentation stays random.
        keep_disk: whether the disk part outlives the last process.
        memory_folder: a tmpfs.
        readers: threads of each process that fetch the items of a DataLoader's batch, so that the latency of a network
            disk is waited for once and not for each item; more than 1 only where `dataset` may be read by threads.

    Cached items come out of one read into a buffer of their own: arrays and tensors are writable, contiguous and views
    of that buffer. Workers may be forked or spawned; only parameters are pickled. Where a folder can't be made or
    written, a RuntimeWarning says so once per process and the items come from the source.
    """

    COUNTERS = ("source_opens", "source_bytes", "memory_hits", "disk_hits", "damaged", "refused", "first_item_ns")
    _VALUES = struct.Struct(f"<{len(COUNTERS)}q")
    _PARAMETERS = ("dataset", "transform", "key", "_places", "_keep_disk", "_readers", "_token", "_started")

    def __init__(self, dataset: Dataset, key: str, memory_bytes: int, disk: str | os.PathLike | None = None,
                 disk_bytes: int = 0, *, transform: Callable | None = None, keep_disk: bool = True,
                 memory_folder: str | os.PathLike = SHARED_MEMORY, readers: int = 1):
        _check_key(key)
        if readers < 1:
            raise ValueError(f"readers must be at least 1, got {readers}")
        if memory_bytes < 0 or disk_bytes < 0 or (disk is None) != (disk_bytes == 0):
            raise ValueError(f"got memory_bytes={memory_bytes}, disk={disk}, disk_bytes={disk_bytes}: limits must not "
                             "be negative, and disk needs disk_bytes > 0 and the other way round")
        self.dataset, self.transform, self.key = dataset, transform, key
        self._keep_disk, self._readers = keep_disk, readers
        self._places = [("memory", Path(memory_folder), int(memory_bytes))]
        self._places += [("disk", Path(disk), int(disk_bytes))] if disk is not None else []
        self._token, self._started = secrets.token_hex(8), time.monotonic_ns()
        self._open(owner=True)

    def _open(self, owner: bool) -> None:
        """Attaches to the cache or makes it. Who is no owner (an unpickled copy) leaves removing to the one who is."""
        self._tiers, self._warned, self._uncounted = [], set(), [0] * len(self.COUNTERS)
        self._home, users, removable, kept = None, None, [], []
        for name, root, limit in self._places:
            folder = root / _folder_name(self.key)
            try:
                if self._home is None:
                    users, self._home = _attach(folder), folder
                    self._counters_file = f"{folder}{os.sep}counters-{self._token}"
                _make_folder(folder)
                _check_folder(folder)
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "is not writable", str(folder))
            except OSError as error:
                self._warn(name, error)
                continue
            if owner:
                (removable if name == "memory" or not self._keep_disk else kept).append(folder)
            if limit:
                self._tiers.append(_Tier(name, folder, limit, self._home))
            if limit and owner and name == "memory":
                self._warn_if_small(root, limit)
        # Finalize, since it runs at exit after the DataLoader's workers have ended, and never in a forked child.
        arguments = (users, self._home, removable, kept)
        self._end = None if users is None else Finalize(self, _detach, arguments, exitpriority=-100)
        for tier in list(self._tiers) if owner else []:
            _sweep_removed(tier.folder.parent)
            try:
                tier.recount()
            except OSError as error:
                self._warn(tier.name, error)
                self._tiers.remove(tier)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._PARAMETERS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open(owner=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        index = operator.index(index)
        if index < 0:
            index += len(self)
        if index < 0:
            raise IndexError(f"index {index - len(self)} is out of range for {len(self)} items")
        item, amounts = self._look_up(index, repair=False) or self._fill(index)
        self._count(**amounts, first_item_ns=time.monotonic_ns() - self._started)
        return item if self.transform is None else self.transform(item)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items of a batch, as torch's DataLoader asks for them."""
        if self._readers == 1 or len(indices) < 2:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(min(self._readers, len(indices))) as pool:
            return list(pool.map(self.__getitem__, indices))

    def _look_up(self, index: int, repair: bool) -> tuple[Any, dict[str, int]] | None:
        """The item and what to count for it, if a tier has it. Repairing removes what is damaged, under its lock."""
        for tier in self._tiers:
            try:
                return tier.load(index), {f"{tier.name}_hits": 1}
            except FileNotFoundError:
                continue
            except (ValueError, OSError):
                if repair:
                    self._count(damaged=1)
                    with self._tolerate(tier):
                        tier.remove(index)
        return None

    def _fill(self, index: int) -> tuple[Any, dict[str, int]]:
        """The item from the source, read by one process while the others wait for it and then find it in the cache."""
        with contextlib.ExitStack() as stack:
            if self._home is not None:
                try:
                    stack.enter_context(_locked(self._home / "items", index))
                except OSError as error:
                    self._warn("control", error)
            found = self._look_up(index, repair=True)
            if found is not None:
                return found
            item = self.dataset[index]
            size, kept = self._store(index, item)
            if hasattr(self.dataset, "item_bytes"):
                size = int(self.dataset.item_bytes(index))
            return item, {"source_opens": 1, "source_bytes": size, "refused": int(not kept)}

    def _store(self, index: int, item: Any) -> tuple[int, bool]:
        """Size of the entry and whether a tier took it."""
        parts, size = encode(item)
        for tier in self._tiers:
            if not tier.broken:
                with self._tolerate(tier):
                    if tier.store(index, parts, size):
                        return size, True
        return size, False

    @contextlib.contextmanager
    def _tolerate(self, tier: _Tier) -> Iterator[None]:
        """A tier that can't be written (full disk, removed folder) is warned of and not written again, only read."""
        try:
            yield
        except OSError as error:
            tier.broken = True
            self._warn(tier.name, error)

    def _warn(self, name: str, error: OSError) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"cache {self.key}: the {name} part can't be used ({error}); what does not fit elsewhere "
                          "comes from the source. Free some room or name another folder.", RuntimeWarning, stacklevel=2)

    def _warn_if_small(self, root: Path, limit: int) -> None:
        total, _ = _extent(root)
        room = max(0, total - _left_free(total))
        if total and room < limit:
            warnings.warn(f"cache {self.key}: {root} has {total >> 20} MiB, of which {room >> 20} are for the cache, "
                          f"less than the {limit >> 20} asked for; the rest is left to the batches of workers. Enlarge "
                          "it (docker run --shm-size 8g), ask for less, or name a disk.", RuntimeWarning, stacklevel=4)

    def _count(self, **amounts: int) -> None:
        try:
            if self._home is None:
                raise FileNotFoundError
            with _locked(self._counters_file) as file:
                values = self._added(self._read_counters(file), amounts)
                os.pwrite(file, self._VALUES.pack(*values), 0)
        except OSError:  # no folder: this process counts for itself
            self._uncounted = self._added(self._uncounted, amounts)

    def _added(self, values: list[int], amounts: dict[str, int]) -> list[int]:
        added = [value + amounts.get(name, 0) for name, value in zip(self.COUNTERS[:-1], values[:-1], strict=True)]
        return [*added, values[-1] or amounts.get("first_item_ns", 0)]

    def _read_counters(self, descriptor: int) -> list[int]:
        stored = os.pread(descriptor, self._VALUES.size, 0)
        return list(self._VALUES.unpack(stored)) if len(stored) == self._VALUES.size else [0] * len(self.COUNTERS)

    def counters(self) -> dict[str, float | None]:
        """What all processes on this key did since the cache was made, killed ones included.

        Returns:
            source_opens (items read), source_bytes, memory_hits, disk_hits, damaged, refused (items read that no tier
            had room for), hit_rate (share of items that came from memory or disk; None before the first), and
            first_item_seconds: from the making of this object to the first item that it or a worker of it returned.
            An item counts when it is returned: one that the source fails to give counts nowhere.
        """
        total = list(self._uncounted)
        for path in self._home.glob("counters-*") if self._home is not None else []:
            with _locked(path) as file:
                values = self._read_counters(file)
            own = path.name == f"counters-{self._token}"
            total = [*map(operator.add, total[:-1], values), values[-1] if own else total[-1]]
        counters = dict(zip(self.COUNTERS, total, strict=True))
        first = counters.pop("first_item_ns")
        hits = counters["memory_hits"] + counters["disk_hits"]
        served = hits + counters["source_opens"]
        return {**counters, "hit_rate": hits / served if served else None,
                "first_item_seconds": first / 1e9 if first else None}

    def usage(self) -> dict[str, dict[str, int]]:
        """Entries, bytes (whole pages) and limit of each tier, counted now."""
        return {tier.name: {**_contents(tier.folder), "limit": tier.limit} for tier in self._tiers}

    def close(self) -> None:
        """Ends the use of the cache now rather than at exit; counters stay readable, items come from the source."""
        if self._end is not None:
            counters = self.counters()
            first = int((counters["first_item_seconds"] or 0) * 1e9)
            self._uncounted = [counters[name] for name in self.COUNTERS[:-1]] + [first]
            self._tiers, self._home, self._places = [], None, []
            self._end()
            self._end = None


# -------------------------------------------------------------------------------------------------------- housekeeping


def _check_key(key: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key):
        raise ValueError(f"got the key {key!r}; it must be 1 to 100 letters, digits, '-' or '_', as of cache_key")


def _contents(folder: Path) -> dict[str, int]:
    sizes = []
    for path in folder.glob("*.item"):
        with contextlib.suppress(FileNotFoundError):  # a damaged one may be removed this moment
            sizes.append(_pages(path.stat().st_size))
    return {"entries": len(sizes), "bytes": sum(sizes)}


def _sweep_removed(root: Path) -> None:
    for folder in root.glob(f"{_folder_name('*')}.removed-*"):  # of a process that was killed while it removed them
        shutil.rmtree(folder, ignore_errors=True)


def list_caches(disk: str | os.PathLike | None = None, memory_folder: str | os.PathLike = SHARED_MEMORY) -> list[dict]:
    """This user's caches: key, folder, entries, bytes and whether a process uses it."""
    roots, rows = [Path(root) for root in (memory_folder, disk) if root is not None], []
    for root in roots:
        for folder in sorted(root.glob(_folder_name("*"))):
            if ".removed-" not in folder.name:
                key = folder.name.removeprefix(_folder_name(""))
                used = any(not _remove_unused(other / folder.name, [], []) for other in roots)
                rows.append({"key": key, "folder": str(folder), **_contents(folder), "in_use": used})
    return rows


def clear(key: str, disk: str | os.PathLike | None = None, memory_folder: str | os.PathLike = SHARED_MEMORY) -> int:
    """Removes the cache of a key, disk part included; returns the bytes freed. RuntimeError while it is in use."""
    _check_key(key)
    roots = [Path(root) for root in (memory_folder, disk) if root is not None]
    folders = [root / _folder_name(key) for root in roots]
    freed = sum(_contents(folder)["bytes"] for folder in folders)
    home = folders[0]
    try:
        os.close(_attach(home))  # makes its lock, so that no job starts on the disk part meanwhile
    except OSError:
        home = folders[-1]  # as a job does that can't use shared memory
        os.close(_attach(home))
    if not _remove_unused(home, folders, []):
        raise RuntimeError(f"cache {key} is in use; end the jobs that use it first (their processes hold {home}/users)")
    for root in roots:
        _sweep_removed(root)
    return freed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("list", "clear"))
    parser.add_argument("--key", help="clear only this one (default: all that no process uses)")
    parser.add_argument("--disk", type=Path, help="the folder given to CachedDataset as `disk`")
    parser.add_argument("--memory-folder", type=Path, default=Path(SHARED_MEMORY))
    options = parser.parse_args()
    rows = [row for row in list_caches(options.disk, options.memory_folder) if options.key in (None, row["key"])]
    if options.command == "list":
        for row in rows:
            state = "in use" if row["in_use"] else "unused"
            print(f"{row['key']}  {row['entries']} entries  {row['bytes'] / 1e6:.1f} MB  {state}  {row['folder']}")
        return
    used = {row["key"] for row in rows if row["in_use"]}
    for key in sorted({row["key"] for row in rows} - used):
        print(f"{key}: {clear(key, options.disk, options.memory_folder) / 1e6:.1f} MB freed")
    if used:
        sys.exit(f"left alone, since they are in use: {', '.join(sorted(used))}")


if __name__ == "__main__":
    main()
