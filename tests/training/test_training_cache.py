"""One cache for all processes of a node: filled once, right after kill -9, never over its limits, gone at a clean end.

Run as a program, this file is a job of its own that test_two_jobs_... starts twice.
"""

import contextlib
import errno
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset  # noqa: E402

from training import cache  # noqa: E402
from training.cache import CachedDataset, cache_key, clear, fingerprint, list_caches  # noqa: E402

pytestmark = pytest.mark.train
ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")
MB = 1 << 20


class Clips(Dataset):
    """Items of different sizes; every read is a line of `log`, across all processes."""

    def __init__(self, log: Path, count: int = 12, seconds: float = 0.0, gain: int = 1, kilobytes: int = 8):
        self.log, self.count, self.seconds, self.gain, self.kilobytes = log, count, seconds, gain, kilobytes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if index >= self.count:
            raise IndexError(index)
        with open(self.log, "ab", buffering=0) as file:
            file.write(b"%d\n" % index)
        time.sleep(self.seconds)
        return self.item(index)

    def item(self, index: int) -> dict:
        values = torch.arange(256 * self.kilobytes + 300 * (index % 5), dtype=torch.int32)
        return {"values": values * self.gain + index, "name": f"clip {index}"}

    def opens(self) -> int:
        return len(self.log.read_bytes().splitlines()) if self.log.exists() else 0

    def right(self, index: int, item: dict) -> bool:
        wanted = self.item(index)
        return item["name"] == wanted["name"] and torch.equal(item["values"], wanted["values"])


@pytest.fixture
def clips(tmp_path):
    return Clips(tmp_path / "log")


@pytest.fixture
def memory(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir()
    return folder


@pytest.fixture
def key():
    """A key in the real shared memory, where nothing may remain."""
    key = cache_key(test=os.urandom(8))
    yield key
    remains = [path.name for path in Path("/dev/shm").glob(f"*{key}*")]
    with contextlib.suppress(RuntimeError):
        clear(key)
    assert remains == []


def alone(item):
    """Collates a batch of one."""
    return item[0]


def use(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*.item"))


def ledger(tier) -> int:
    with tier._change() as (used, _):
        return used


def in_child(function, *arguments):
    child = FORK.Process(target=function, args=arguments)
    child.start()
    return child


def all_right(dataset: Clips, cached: CachedDataset) -> bool:
    return all(dataset.right(index, cached[index]) for index in range(len(dataset)))


# --------------------------------------------------------------------------------------------------------------- items

ITEM = {
    "nest": [1, 2.5, None, True, "ü\udc80", b"\0bytes", (), [], {}, ("a", [(-1,)])],
    "big": 1 << 70,
    "special": [float("inf"), 1e-300],
    (1, "key"): {0: "int key", None: False, b"k": 1},
    "arrays": [np.arange(6, dtype=">f4").reshape(2, 3).T, np.array(3, np.int16), np.empty((0, 4)),
               np.array(["a", "bc"]), np.array(["2020-01-01"], "M8[D]"), np.float32(0.1),
               np.ones((3, 3), np.complex64)[:, ::2]],
    "tensors": [torch.arange(6).reshape(2, 3).T, torch.tensor(1.5, dtype=torch.bfloat16), torch.tensor([True, False]),
                torch.empty(0, 3), torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)],
}


def same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b


def test_an_item_of_every_kind_comes_back_equal_writable_and_independent(memory):
    cached = CachedDataset([ITEM], "kinds", MB, memory_folder=memory)
    cached[0]
    item = cached[0]
    assert same(ITEM, item) and cached.counters()["memory_hits"] == 1
    item["arrays"][0][:] = 7
    item["tensors"][0][:] = 7
    assert same(ITEM, cached[0])


Pair = namedtuple("Pair", "a b")
UNSUPPORTED = [({1, 2}, "builtins.set"), (Pair(1, 2), "Pair"), (np.array([None]), "object"), (Path("a"), "Path"),
               (torch.ones(2, requires_grad=True), "torch.Tensor"), (torch.eye(2).to_sparse(), "torch.Tensor")]


@pytest.mark.parametrize("item, name", UNSUPPORTED)
def test_an_unsupported_type_is_named_with_what_is_supported(item, name, memory):
    cached = CachedDataset([{"x": [item]}], "types", MB, memory_folder=memory)
    with pytest.raises(TypeError, match=f"{name}.*may be any nest of None, bool, int"):
        cached[0]
    assert cached.usage()["memory"]["entries"] == 0


def test_a_transform_runs_anew_on_every_access_and_is_not_cached(clips, memory):
    draws = iter(range(100))
    options = {"transform": lambda item: (item["name"], next(draws)), "memory_folder": memory}
    cached = CachedDataset(clips, "random", MB, **options)
    assert [cached[3], cached[3], cached[-9]] == [("clip 3", 0), ("clip 3", 1), ("clip 3", 2)]
    assert clips.opens() == 1


def test_an_exception_of_the_source_passes_and_leaves_neither_entry_nor_lock(memory):
    class Flaky(list):
        def __getitem__(self, index):
            return [self.pop(0)(), index][1]

    def fail():
        raise OSError(errno.EIO, "network disk")

    source = Flaky([fail, lambda: 0])
    cached = CachedDataset(source, "flaky", MB, memory_folder=memory)
    with pytest.raises(OSError, match="network disk"):
        cached[1]
    assert cached[1] == 1 and cached[1] == 1 and cached.counters()["source_opens"] == 1
    with pytest.raises(IndexError):
        CachedDataset([5], "short", MB, memory_folder=memory)[1]
    with pytest.raises(IndexError, match="index -2 is out of range for 1 items"):
        CachedDataset([5], "short", MB, memory_folder=memory)[-2]


def test_threads_that_ask_for_the_same_item_read_it_once(clips, memory):
    clips.seconds = 0.05
    cached = CachedDataset(clips, "threads", MB, memory_folder=memory)
    threads = [threading.Thread(target=cached.__getitem__, args=(0,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clips.opens() == 1 and cached.counters()["memory_hits"] == 3


# ---------------------------------------------------------------------------------------------------- several processes


def job(folder: Path, key: str, number: int) -> None:
    """A rank of its own with two workers: both epochs in an order of its own; ends when both ranks have finished."""
    clips = Clips(folder / "log", count=40, seconds=0.01)
    cached = CachedDataset(clips, key, 8 * MB)
    meet(folder, "attached", number)
    options = {"num_workers": 2, "persistent_workers": True, "generator": torch.Generator().manual_seed(number)}
    loader = DataLoader(cached, batch_size=None, shuffle=True, **options)
    for _ in range(2):
        items = {item["name"]: item for item in loader}
        assert sorted(items) == sorted(f"clip {index}" for index in range(40))
        assert all(clips.right(int(name.split()[1]), item) for name, item in items.items())
    meet(folder, "finished", number)
    counters = cached.counters()
    assert (counters["source_opens"], counters["memory_hits"], counters["hit_rate"]) == (40, 120, 0.75), counters
    assert counters["source_bytes"] > 40 * 8192 and 0 < counters["first_item_seconds"] < 100
    meet(folder, "counted", number)


def meet(folder: Path, name: str, number: int) -> None:
    (folder / f"{name}-{number}").touch()
    deadline = time.monotonic() + 100
    while not (folder / f"{name}-{1 - number}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.memory
def test_two_jobs_with_two_workers_each_read_every_item_once_in_two_epochs(tmp_path, key):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, tmp_path, key]
    jobs = [subprocess.Popen([*command, str(number)], env=environment) for number in (0, 1)]
    assert [process.wait(120) for process in jobs] == [0, 0]
    assert Clips(tmp_path / "log").opens() == 40


@pytest.mark.memory
def test_two_ranks_of_torchrun_with_two_workers_each_read_every_item_once_in_two_epochs(tmp_path, key):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run([*launcher, __file__, tmp_path, key], env=environment, timeout=120, capture_output=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert Clips(tmp_path / "log").opens() == 40


@pytest.mark.memory
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_end_of_a_worker_leaves_the_cache_and_the_end_of_its_owner_removes_it(method, clips, key):
    cached = CachedDataset(clips, key, MB)
    loader = DataLoader(cached, batch_size=None, num_workers=1, multiprocessing_context=method)
    for _ in range(2 if method == "fork" else 1):  # new workers in each epoch
        assert [item["name"] for item in loader] == [f"clip {index}" for index in range(12)]
    assert all_right(clips, cached) and clips.opens() == 12
    assert cached.usage()["memory"]["entries"] == 12
    cached.close()
    assert not list(Path("/dev/shm").glob(f"*{key}*"))
    assert cached.counters()["source_opens"] == 12 and clips.right(0, cached[0])


def test_a_cache_closed_while_its_workers_live_serves_them_and_goes_when_its_process_ends(clips, memory):
    def run():
        warnings.simplefilter("error")
        cached = CachedDataset(clips, "early", MB, memory_folder=memory)
        loader = DataLoader(cached, batch_size=None, num_workers=1, persistent_workers=True)
        iterator = iter(loader)
        next(iterator)
        cached.close()
        assert all(clips.right(index + 1, item) for index, item in enumerate(iterator))
        assert all(clips.right(index, item) for index, item in enumerate(loader)) and clips.opens() == 12
        assert use(memory) > 0

    child = in_child(run)
    child.join(60)
    assert child.exitcode == 0 and list(memory.iterdir()) == []


def test_a_job_that_attaches_while_another_writes_leaves_the_unfinished_entry_to_its_writer(clips, memory):
    writing, go_on = FORK.Event(), FORK.Event()

    class Waiting(list):
        def __iter__(self):
            writing.set()
            go_on.wait(60)
            return super().__iter__()

    def write():
        encode = cache.encode
        cache.encode = lambda item: (Waiting(encode(item)[0]), encode(item)[1])
        with contextlib.closing(CachedDataset(clips, "write", MB, memory_folder=memory)) as cached:
            assert cached[0]

    child = in_child(write)
    assert writing.wait(60)
    with contextlib.closing(CachedDataset(clips, "write", MB, memory_folder=memory)) as cached:
        (temporary,) = memory.rglob("*.tmp")
        assert ledger(cached._tiers[0]) == -(-temporary.stat().st_size // 4096) * 4096
        go_on.set()
        assert clips.right(0, cached[0]) and clips.opens() == 1
        child.join(60)
        assert child.exitcode == 0 and ledger(cached._tiers[0]) == use(memory)


def test_a_second_job_attaches_and_reads_on_while_the_first_is_busy_and_outlives_it(clips, memory):
    busy, go_on = FORK.Event(), FORK.Event()

    class Slow(Clips):
        def item(self, index):
            if index == 3:
                busy.set()
                go_on.wait(60)
            return super().item(index)

    def first():
        with contextlib.closing(CachedDataset(Slow(clips.log), "attach", MB, memory_folder=memory)) as cached:
            assert cached[0] and cached[3]

    child = in_child(first)
    assert busy.wait(60)
    second = CachedDataset(clips, "attach", MB, memory_folder=memory)
    assert all(clips.right(index, second[index]) for index in (0, 1, 2, 4))
    go_on.set()
    child.join(60)
    assert child.exitcode == 0 and clips.right(3, second[3]) and clips.opens() == 5
    second.close()
    assert list(memory.iterdir()) == []


def test_jobs_that_start_and_end_all_the_time_never_lose_the_folder_under_another(memory, tmp_path):
    def attach_and_end(number):
        warnings.simplefilter("error")
        for turn in range(25):
            dataset = Clips(tmp_path / "log", kilobytes=1)
            with contextlib.closing(CachedDataset(dataset, "turns", MB, memory_folder=memory)) as cached:
                assert dataset.right(turn % 3, cached[turn % 3]) and cached.usage()["memory"]["entries"] > 0

    children = [in_child(attach_and_end, number) for number in range(4)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4 and list(memory.iterdir()) == []


def test_a_folder_that_its_last_user_removes_while_a_job_attaches_is_made_anew(clips, memory, monkeypatch):
    flock, first = cache.fcntl.flock, CachedDataset(clips, "race", MB, memory_folder=memory)

    def flock_too_late(descriptor, operation):
        monkeypatch.undo()
        first.close()
        flock(descriptor, operation)

    monkeypatch.setattr(cache.fcntl, "flock", flock_too_late)
    with contextlib.closing(CachedDataset(clips, "race", MB, memory_folder=memory)) as cached:
        assert [row["in_use"] for row in list_caches(memory_folder=memory)] == [True]
        assert all_right(clips, cached) and all_right(clips, cached) and clips.opens() == 12


# -------------------------------------------------------------------------------------------------------------- kill -9


def kill_self(*_):
    os.kill(os.getpid(), signal.SIGKILL)


class KilledWhenHalfWritten(list):
    """Parts of an entry: they are passed once for the checksum, then once to be written."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        for number, part in enumerate(super().__iter__()):
            if self.passes == 2 and number == len(self) - 2:
                kill_self()
            yield part


def die_at(instant: str, clips: Clips, memory: Path) -> None:
    """Reads two items, the second of which kills its process at the instant."""
    cached = CachedDataset(clips, "killed", MB, memory_folder=memory)
    cached[0]
    rename, encode, tier = Path.rename, cache.encode, cached._tiers[0]
    if instant == "source is read":
        clips.item = kill_self
    elif instant == "file is made":
        os.ftruncate = kill_self
    elif instant == "room is reserved":
        reserve = tier._reserve
        tier._reserve = lambda *arguments: kill_self(reserve(*arguments))
    elif instant == "half is written":
        cache.encode = lambda item: (KilledWhenHalfWritten(encode(item)[0]), encode(item)[1])
    elif instant == "all is written":
        Path.rename = kill_self
    elif instant == "entry is there":
        Path.rename = lambda *arguments: kill_self(rename(*arguments))
    cached[1]


@pytest.mark.parametrize("instant", ["source is read", "file is made", "room is reserved", "half is written",
                                     "all is written", "entry is there"])
def test_a_process_killed_at_any_instant_blocks_nobody_and_leaves_only_whole_entries(instant, clips, memory):
    child = in_child(die_at, instant, clips, memory)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    kept = len(list(memory.rglob("*.item")))
    assert kept == (2 if instant == "entry is there" else 1)
    opens = clips.opens()
    cached = CachedDataset(clips, "killed", MB, memory_folder=memory)
    assert all_right(clips, cached) and clips.opens() == opens + 12 - kept  # what was whole is used
    assert not list(memory.rglob("*.tmp")) and ledger(cached._tiers[0]) == use(memory)
    cached.close()
    assert list(memory.iterdir()) == []


def test_a_spawned_worker_that_outlives_its_killed_job_leaves_the_cache_to_the_next(clips, memory):
    receiver, sender = FORK.Pipe(duplex=False)

    def killed():
        cached = CachedDataset(clips, "next", MB, memory_folder=memory)
        cached[0]
        sender.send_bytes(pickle.dumps(cached))
        kill_self()

    in_child(killed).join(60)
    copy = pickle.loads(receiver.recv_bytes())
    assert clips.right(0, copy[0]) and copy.counters()["memory_hits"] == 1
    copy.close()
    assert len(list(memory.rglob("*.item"))) == 1


def test_room_that_a_killed_worker_reserved_comes_back_while_the_job_runs(clips, memory, monkeypatch):
    monkeypatch.setattr(cache, "RECOUNT_SECONDS", 0.0)
    cached = CachedDataset(clips, "killed", 40 * 1024, memory_folder=memory)  # room for 3 items
    child = in_child(die_at, "half is written", clips, memory)
    child.join(60)
    for index in (2, 3):
        assert clips.right(index, cached[index])
    assert cached.usage()["memory"]["entries"] == 3 and cached.counters()["refused"] == 0


def test_kills_at_random_moments_never_leave_a_wrong_item_or_a_wrong_account(tmp_path, memory):
    limits = {"memory_bytes": 60 * 4096, "disk": tmp_path / "disk", "disk_bytes": 60 * 4096, "memory_folder": memory}

    def fill(seed):
        cached = CachedDataset(clips, "random", **limits)
        for index in random.Random(seed).sample(range(60), 60):
            assert clips.right(index, cached[index])
        time.sleep(60)

    generator = random.Random(0)
    for seed in range(6):
        clips = Clips(tmp_path / f"log-{seed}", count=60)
        children = [in_child(fill, 10 * seed + number) for number in range(2)]
        while clips.opens() < 3 + 8 * seed and all(child.is_alive() for child in children):
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.01))
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
            child.join(60)
        assert [child.exitcode for child in children] == [-signal.SIGKILL] * 2
        opens, kept = clips.opens(), len(list(tmp_path.rglob("*.item")))
        cached = CachedDataset(clips, "random", **limits)
        assert not list(tmp_path.rglob("*.tmp")) and cached.counters()["damaged"] == 0
        assert all_right(clips, cached) and clips.opens() == opens + 60 - kept
        for tier, folder in zip(cached._tiers, (memory, tmp_path / "disk"), strict=True):
            assert ledger(tier) == use(folder) <= 60 * 4096
        if seed % 2:
            cached.close()
            clear("random", tmp_path / "disk", memory)
        del cached


# ---------------------------------------------------------------------------------------------------- damage and limits


@pytest.mark.parametrize("place", ["magic", "checksum", "length", "header", "buffer", "cut", "empty"])
def test_a_damaged_entry_is_counted_removed_and_refilled(place, clips, memory):
    cached = CachedDataset(clips, "damage", MB, memory_folder=memory)
    cached[0], cached[1]
    (path,) = memory.rglob("1.item")
    data = bytearray(path.read_bytes())
    if place in ("cut", "empty"):
        data = data[: len(data) // 2 if place == "cut" else 0]
    else:
        data[{"magic": 3, "checksum": 9, "length": 13, "header": 40, "buffer": len(data) - 3000}[place]] ^= 16
    path.write_bytes(data)
    assert clips.right(1, cached[1]) and clips.right(1, cached[1]) and clips.opens() == 3
    counters = cached.counters()
    assert (counters["damaged"], counters["source_opens"], counters["memory_hits"]) == (1, 3, 1)
    cached._tiers[0].recount()
    assert ledger(cached._tiers[0]) == use(memory)


def test_memory_spills_to_disk_and_disk_to_the_source_and_limits_hold_for_all_processes_together(tmp_path, memory):
    limits = {"memory": 10 * 4096, "disk": 20 * 4096}
    clips, disk = Clips(tmp_path / "log", count=30), tmp_path / "disk"

    def attach():
        return CachedDataset(clips, "limits", limits["memory"], disk, limits["disk"], memory_folder=memory)

    def read(seed):
        cached = attach()
        for index in random.Random(seed).sample(range(30), 30):
            assert clips.right(index, cached[index])

    cached = attach()
    children, most = [in_child(read, seed) for seed in range(4)], {"memory": 0, "disk": 0}
    while any(child.is_alive() for child in children):
        most = {name: max(most[name], use(folder)) for name, folder in (("memory", memory), ("disk", disk))}
    assert [child.exitcode for child in children] == [0] * 4
    assert all(limits[name] - 4 * 4096 < cached.usage()[name]["bytes"] <= limits[name] for name in limits)
    assert all(most[name] <= limits[name] for name in limits)
    counters = cached.counters()
    kept = sum(usage["entries"] for usage in cached.usage().values())
    assert counters["refused"] == counters["source_opens"] - kept == clips.opens() - kept > 0
    assert {path.suffix for path in disk.rglob("*") if path.is_file()} == {".item"}  # no locks on the disk
    on_disk, opens = cached.usage()["disk"]["entries"], clips.opens()
    cached.close()
    assert list(memory.iterdir()) == []
    with contextlib.closing(attach()) as again:
        assert all_right(clips, again) and again.counters()["disk_hits"] == on_disk
        assert clips.opens() == opens + 30 - on_disk


def test_keep_disk_false_leaves_nothing_and_an_unused_disk_folder_is_not_left_either(clips, memory, tmp_path):
    for number, options in enumerate(({"keep_disk": False}, {})):
        cached = CachedDataset(clips, f"k{number}", MB * number, tmp_path / "disk", MB, memory_folder=memory, **options)
        assert all_right(clips, cached)
        cached.close()
        assert list((tmp_path / "disk").iterdir()) == list(memory.iterdir()) == []


def test_a_full_file_system_warns_once_and_the_run_goes_on_from_the_source(clips, memory, monkeypatch):
    class Full:
        tried = 0

        def __init__(self, descriptor, mode):
            self.descriptor = descriptor
            Full.tried += 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            os.close(self.descriptor)

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cached = CachedDataset(clips, "full", MB, memory_folder=memory)
    cached[0]
    opener = {"wb": Full, "rb": open}
    monkeypatch.setattr(cache, "open", lambda path, mode: opener[mode](path, mode), raising=False)
    with pytest.warns(RuntimeWarning, match="memory part can't be used .*No space left on device") as caught:
        assert all_right(clips, cached) and all_right(clips, cached)
    assert len(caught) == Full.tried == 1 and clips.opens() == 1 + 11 + 11 and not list(memory.rglob("*.tmp"))
    assert ledger(cached._tiers[0]) == use(memory) > 0 and cached.counters()["refused"] == 22


@contextlib.contextmanager
def small_tmpfs(folder: Path, size: str):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # lazily: a failed test may still hold it


@pytest.mark.filterwarnings("ignore:.*--shm-size")
def test_a_real_full_file_system_spills_to_disk(clips, tmp_path, memory, monkeypatch):
    monkeypatch.setattr(cache, "_left_free", lambda total: -total)  # who fills it comes after the look
    with small_tmpfs(memory, "64k"):
        with pytest.warns(RuntimeWarning, match="No space left on device"):
            cached = CachedDataset(clips, "full", MB, tmp_path / "disk", MB, memory_folder=memory)
            assert all_right(clips, cached)
        assert all_right(clips, cached) and clips.opens() == 12
        assert cached.usage()["memory"]["entries"] > 0 and cached.usage()["disk"]["entries"] > 0
        cached.close()
        assert list(memory.iterdir()) == []


def test_the_batches_of_workers_keep_their_part_of_a_small_shared_memory(clips, tmp_path, memory):
    """They go through the same tmpfs, and a worker that finds it full ends the run."""
    with small_tmpfs(memory, "65m"):
        clips.kilobytes = 200
        with pytest.warns(RuntimeWarning, match="has 65 MiB, of which 1 are for the cache.*--shm-size"):
            cached = CachedDataset(clips, "batches", 64 * MB, tmp_path / "disk", 8 * MB, memory_folder=memory)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all_right(clips, cached) and all_right(clips, cached) and clips.opens() == 12
        assert cached.usage()["memory"]["entries"] == 4 and cached.usage()["disk"]["entries"] == 8
        status = os.statvfs(memory)
        assert 64 * MB <= status.f_bavail * status.f_frsize < 64.3 * MB
        cached.close()


@pytest.mark.filterwarnings("ignore:.*--shm-size")
@pytest.mark.parametrize("total, left", [(16, 64), (64, 64), (1000, 250), (4096, 1024), (1 << 20, 1024)])
def test_a_quarter_of_the_shared_memory_within_limits_is_left_free(total, left, clips, memory, monkeypatch):
    statvfs, bytes_free = os.statvfs, left * MB + 16384  # one item and a page more than must stay free
    fake = namedtuple("Status", "f_blocks f_bavail f_frsize")(total * 256, bytes_free // 4096, 4096)
    monkeypatch.setattr(os, "statvfs", lambda path: fake)
    cached = CachedDataset(clips, "left", MB // 2, memory_folder=memory)
    cached[0]
    assert cached.usage()["memory"]["entries"] == 1
    monkeypatch.setattr(os, "statvfs", lambda path: fake._replace(f_bavail=left * 256 + 2))
    cached[1]
    assert cached.usage()["memory"]["entries"] == 1 and cached.counters()["refused"] == 1
    monkeypatch.setattr(os, "statvfs", lambda path: fake._replace(f_blocks=0, f_bavail=0))  # a tmpfs without a limit
    cached[1]
    monkeypatch.setattr(os, "statvfs", statvfs)
    assert cached.usage()["memory"]["entries"] == 2


def test_a_folder_that_cannot_be_made_warns_once_and_the_run_goes_on(clips, tmp_path):
    (tmp_path / "file").touch()
    for disk, opens in ((tmp_path / "disk", 12), (tmp_path / "file" / "disk", 36)):
        with pytest.warns(RuntimeWarning, match="part can't be used .*Not a directory") as caught:
            cached = CachedDataset(clips, "no", MB, disk, MB, memory_folder=tmp_path / "file" / "memory")
        assert len(caught) == (1 if opens == 12 else 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all_right(clips, cached) and all_right(clips, cached) and clips.opens() == opens
        assert cached.counters()["source_opens"] == (12 if opens == 12 else 24)
        cached.close()


def test_a_cache_folder_deleted_in_use_warns_of_each_part_once_and_the_run_goes_on(clips, memory):
    cached = CachedDataset(clips, "deleted", MB, memory_folder=memory)
    shutil.rmtree(memory)
    with pytest.warns(RuntimeWarning, match="No such file or directory") as caught:
        assert all_right(clips, cached) and all_right(clips, cached)
    assert len(caught) == 2 and clips.opens() == cached.counters()["source_opens"] == 24  # its locks and its entries


def test_a_folder_of_somebody_else_is_not_used(clips, memory, tmp_path):
    (memory / cache._folder_name("link")).symlink_to(tmp_path)
    with pytest.warns(RuntimeWarning, match="belongs to somebody else"):
        cached = CachedDataset(clips, "link", MB, memory_folder=memory)
    assert all_right(clips, cached) and not list(tmp_path.glob("*.item"))


# --------------------------------------------------------------------------------------------------- keys, housekeeping


@dataclass
class Decoding:
    frames: int = 15


def one(x):
    return x


def two(x):
    return x + 1


def test_a_key_changes_with_source_parameters_and_code_but_not_with_their_order(tmp_path):
    file = tmp_path / "clips.bin"
    file.write_bytes(b"1")
    first = fingerprint(file)
    os.utime(file, ns=(5, 5))
    second = fingerprint(file)
    file.write_bytes(b"12")
    os.utime(file, ns=(5, 5))
    assert len({first, second, fingerprint(file), fingerprint(tmp_path)}) == 4
    folder = fingerprint(tmp_path)
    assert folder == fingerprint(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more").touch()
    assert folder != fingerprint(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        fingerprint(tmp_path / "missing")
    assert cache_key(a=1, b={"x": 1, "y": Path("z")}) == cache_key(b={"y": "z", "x": 1}, a=1)
    keys = [cache_key(code=part) for part in (one, two, Decoding(), Decoding(30), Decoding, np.int64(3), {1, 2}, cache)]
    assert len(set(keys)) == len(keys) and keys[0] == cache_key(code=one)
    with pytest.raises(TypeError, match="can't hash builtins.object"):
        cache_key(code=object())


def test_another_key_has_entries_of_its_own_and_leaves_a_running_cache_alone(clips, memory):
    louder = Clips(clips.log, gain=2)
    first, second = (CachedDataset(d, cache_key(gain=d.gain), MB, memory_folder=memory) for d in (clips, louder))
    assert all_right(clips, first) and all_right(louder, second) and clips.opens() == 24
    second.close()
    assert all_right(clips, first) and all_right(clips, first) and clips.opens() == 24


def test_the_command_line_lists_caches_and_clears_what_no_process_uses(clips, memory, tmp_path, monkeypatch, capsys):
    def leave_behind():
        stale = CachedDataset(clips, "stale", 20 * 1024, tmp_path / "disk", MB, memory_folder=memory)
        kill_self(all_right(clips, stale))

    in_child(leave_behind).join(60)
    cached = CachedDataset(clips, "running", MB, memory_folder=memory)
    cached[0]
    (memory / f"{cache._folder_name('gone')}.removed-0000").mkdir()
    with pytest.raises(RuntimeError, match="cache running is in use"):
        clear("running", memory_folder=memory)
    rows = list_caches(tmp_path / "disk", memory)
    assert [(row["key"], row["in_use"]) for row in rows] == [("running", True), ("stale", False), ("stale", False)]
    assert rows[1]["entries"] + rows[2]["entries"] == 12 and rows[2]["bytes"] == use(tmp_path / "disk")
    arguments = ["--disk", str(tmp_path / "disk"), "--memory-folder", str(memory)]
    monkeypatch.setattr(sys, "argv", ["cache.py", "list", *arguments])
    cache.main()
    assert capsys.readouterr().out.count("stale") == 4
    monkeypatch.setattr(sys, "argv", ["cache.py", "clear", *arguments])
    with pytest.raises(SystemExit, match="in use: running"):
        cache.main()
    assert [path.name for path in memory.iterdir()] == [cache._folder_name("running")]
    assert list((tmp_path / "disk").iterdir()) == [] and clips.right(0, cached[0])


class Together(Clips):
    """A source that gives no item before each of them is asked for."""

    def __init__(self, log: Path, count: int):
        super().__init__(log, count)
        self.all_asked = threading.Barrier(count)

    def __getitem__(self, index: int) -> dict:
        self.all_asked.wait(30)  # raises BrokenBarrierError where they are asked for one after another
        return super().__getitem__(index)


def test_the_readers_of_a_batch_wait_for_the_source_together(tmp_path, memory):
    clips = Together(tmp_path / "log", 8)
    cached = CachedDataset(clips, "readers", MB, memory_folder=memory, readers=8)
    loader = DataLoader(cached, batch_size=8, collate_fn=list)
    (batch,) = loader
    assert [clips.right(index, item) for index, item in enumerate(batch)] == [True] * 8
    assert clips.opens() == 8 and cached.counters()["source_opens"] == 8
    (again,) = loader
    assert clips.opens() == 8 and [item["name"] for item in again] == [item["name"] for item in batch]


def test_wrong_limits_and_keys_say_what_is_wanted(clips, tmp_path):
    for options in ({"memory_bytes": -1}, {"memory_bytes": 1, "disk": tmp_path}, {"memory_bytes": 1, "disk_bytes": 5}):
        with pytest.raises(ValueError, match="disk needs disk_bytes > 0"):
            CachedDataset(clips, "key", **options)
    with pytest.raises(ValueError, match="letters, digits"):
        CachedDataset(clips, "../key", 1)


def test_a_dataset_that_knows_the_bytes_of_an_item_has_them_counted(clips, memory):
    clips.item_bytes = lambda index: 1000 + index
    cached = CachedDataset(clips, "bytes", MB, memory_folder=memory)
    assert all_right(clips, cached) and all_right(clips, cached)
    assert cached.counters()["source_bytes"] == 12 * 1000 + sum(range(12))


if __name__ == "__main__":
    job(Path(sys.argv[1]), sys.argv[2], int(os.environ["LOCAL_RANK"] if len(sys.argv) == 3 else sys.argv[3]))
