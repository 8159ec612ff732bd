"""Shards hold the prepared mp4 files byte for byte, get their names only when whole, and damage in them is found."""

import csv
import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import media
import numpy as np
import pytest

h5py = pytest.importorskip("h5py")
pytest.importorskip("tyro")

from training.pack import (  # noqa: E402
    DamagedClip,
    Pack,
    Shards,
    Stats,
    Verify,
    main,
    pack,
    plan,
    read_manifest,
    stats,
    verify,
)

pytestmark = pytest.mark.train
PACK = Path(__file__).resolve().parents[2] / "training" / "pack.py"
COLUMNS = ("id", "file", "source", "start", "duration", "fps", "width", "height", "sample_rate", "split", "labels",
           "sha256", "bytes")


def prepare(folder: Path, blobs: list[bytes], splits=("train",), labels=("",)) -> Path:
    """A prepared folder of these files, named c0, c1, ..., with splits and labels in turn."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, blob in enumerate(blobs):
            (folder / "clips" / f"c{number}.mp4").write_bytes(blob)
            writer.writerow({"id": f"c{number}", "file": f"clips/c{number}.mp4", "source": f"vidéo{number // 2}",
                             "start": number * 1.5, "duration": 2.0, "fps": 15, "width": 64, "height": 48,
                             "sample_rate": 32000, "split": splits[number % len(splits)],
                             "labels": labels[number % len(labels)], "sha256": hashlib.sha256(blob).hexdigest(),
                             "bytes": len(blob)})
    return folder


def noise(count: int, size: int = 5000) -> list[bytes]:
    generator = np.random.default_rng(1)
    return [generator.bytes(size + number) for number in range(count)]


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ 1]))


def start_pack(prepared: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, str(PACK), "pack", "--prepared", str(prepared), "--output", str(output)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def mp4_files(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("mp4")
    images = media.noise_images(15, 64, 48)
    return [media.write_mp4(folder / f"{n}.mp4", images, 15, media.tone(1.0, 32000, 300.0 + n), 32000).read_bytes()
            for n in range(5)]


def test_what_is_packed_is_read_back_with_its_metadata(tmp_path, mp4_files):
    prepared = prepare(tmp_path / "prepared", mp4_files, ("train", "train", "test"), ("dog|人", "", "cat"))
    report = pack(Pack(prepared, tmp_path / "shards"))
    assert report["clips"] == 5 and not report["dropped"]
    train, test = (Shards(tmp_path / "shards", split) for split in ("train", "test"))
    assert [train.blob(i) for i in range(len(train))] == [mp4_files[i] for i in (0, 1, 3, 4)]
    assert [test.blob(i) for i in range(len(test))] == [mp4_files[2]]
    clip = train.clip(2)
    assert (clip.id, clip.source, clip.labels, clip.split) == ("c3", "vidéo1", ("dog", "人"), "train")
    assert (clip.start, clip.duration, clip.fps, clip.sample_rate) == (4.5, 2, 15, 32000)
    assert (clip.width, clip.height) == (64, 48)
    assert clip.sha256 == hashlib.sha256(mp4_files[3]).hexdigest() and clip.bytes == len(mp4_files[3])
    assert train.clip(1).labels == () and train.labels == ("dog", "人") and test.labels == ("cat",)
    assert len(Shards(tmp_path / "shards")) == 5 and len(Shards([tmp_path / "shards" / "train-00000.h5"])) == 4
    with pytest.raises(IndexError):
        train.blob(4)


def test_shards_are_plain_hdf5_that_others_can_read(tmp_path):
    blobs = noise(3)
    pack(Pack(prepare(tmp_path / "prepared", blobs), tmp_path / "shards"))
    with h5py.File(tmp_path / "shards" / "train-00000.h5", "r") as file:
        assert file["bytes"].dtype == np.uint8 and file["bytes"].chunks is None and file["offset"].dtype == np.int64
        begin, end = file["offset"][1:3]
        assert file["bytes"][begin:end].tobytes() == blobs[1] and file["clips"]["id"].tolist() == [b"c0", b"c1", b"c2"]


def test_shards_take_at_most_a_thousandth_more_than_the_files(tmp_path):
    blobs = noise(60, 150_000)  # a 10 s clip of 256x256 is twice that
    pack(Pack(prepare(tmp_path / "prepared", blobs, labels=("playing violin, fiddle|orchestra",)), tmp_path / "shards"))
    assert (tmp_path / "shards" / "train-00000.h5").stat().st_size <= 1.001 * sum(map(len, blobs))


def test_shards_are_filled_to_their_size_and_no_small_one_remains(tmp_path):
    clips = read_manifest(prepare(tmp_path / "prepared", noise(11, 1000), ("train",) * 9 + ("test",) * 2))
    shards = plan(clips, 3000)
    assert [len(group) for group in shards.values()] == [3, 3, 3, 2] and list(shards)[-1] == "test-00000.h5"
    assert [len(group) for group in plan(clips, 4000).values()] == [4, 5, 2]
    with pytest.raises(ValueError, match="shard_bytes must be > 0"):
        plan(clips, 0)


def test_a_second_run_keeps_whole_shards_and_an_edited_manifest_renews_its_shard(tmp_path):
    config = Pack(prepare(tmp_path / "prepared", noise(6)), tmp_path / "shards", shard_bytes=10_000)
    assert pack(config)["written"] == ["train-00000.h5", "train-00001.h5", "train-00002.h5"]
    before = {path.name: path.stat().st_ino for path in config.output.glob("*.h5")}
    assert pack(config)["kept"] == sorted(before)
    assert {path.name: path.stat().st_ino for path in config.output.glob("*.h5")} == before
    blobs = noise(6)
    blobs[2] = blobs[2][::-1]  # another file of the same size: only its checksum tells
    prepare(config.prepared, blobs)
    report = pack(config)
    assert report["written"] == ["train-00001.h5"] and len(report["kept"]) == 2
    assert Shards(config.output).blob(2) == blobs[2]


def test_a_pack_killed_midway_leaves_no_shard_of_that_name_and_the_next_run_completes(tmp_path):
    blobs = noise(60, 20_000)
    prepared, output = prepare(tmp_path / "prepared", blobs), tmp_path / "shards"
    (prepared / "clips" / "c59.mp4").unlink()
    os.mkfifo(prepared / "clips" / "c59.mp4")  # opening it waits: the shard is then all but whole
    process = start_pack(prepared, output)
    partial = output / "train-00000.h5.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 1_000_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not list(output.glob("*.h5"))
    with pytest.raises(FileNotFoundError, match="has not finished there"):
        Shards(output)
    (prepared / "clips" / "c59.mp4").unlink()
    prepare(prepared, blobs)
    assert start_pack(prepared, output).wait() == 0
    assert sorted(path.name for path in output.iterdir()) == [".pack.lock", "shards.json", "train-00000.h5"]
    shards = Shards(output)
    assert [shards.blob(i) for i in range(len(shards))] == blobs


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5py, of the file it cannot close
def test_a_full_disk_is_reported_keeps_whole_shards_and_leaves_nothing_half_written(tmp_path):
    blobs = noise(3, 20_000)
    blobs[2] = bytes(400_000)
    config = Pack(prepare(tmp_path / "prepared", blobs), tmp_path / "shards", shard_bytes=30_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writing past it fails as on a full disk
    try:
        with pytest.raises(OSError, match="make room or give another --output.*whole shards are kept"):
            pack(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in config.output.iterdir()) == [".pack.lock", "train-00000.h5"]
    assert pack(config)["kept"] == ["train-00000.h5"]
    assert Shards(config.output).blob(2) == blobs[2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_old_and_new_shards_are_not_read_together_after_a_failed_update(tmp_path):
    blobs = noise(3, 20_000)
    config = Pack(prepare(tmp_path / "prepared", blobs), tmp_path / "shards", shard_bytes=30_000)
    pack(config)
    prepare(config.prepared, [blobs[0], bytes(400_000), blobs[2]])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="make room"):
            pack(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(FileNotFoundError, match="has not finished there"):
        Shards(config.output)
    pack(config)
    assert Shards(config.output).blob(1) == bytes(400_000)


def test_two_packs_into_one_folder_do_not_mix(tmp_path):
    prepared, output = prepare(tmp_path / "prepared", noise(2)), tmp_path / "shards"
    (prepared / "clips" / "c1.mp4").unlink()
    os.mkfifo(prepared / "clips" / "c1.mp4")
    process = start_pack(prepared, output)
    try:
        deadline = time.monotonic() + 60
        while not list(output.glob("*.partial")) and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(OSError, match="another pack is writing"):
            pack(Pack(prepared, output))
    finally:
        process.kill()
        process.wait()


def test_missing_and_changed_files_are_left_out_counted_and_tried_again(tmp_path, capsys):
    blobs = noise(5)
    config = Pack(prepare(tmp_path / "prepared", blobs), tmp_path / "shards")
    (config.prepared / "clips" / "c0.mp4").unlink()
    flip(config.prepared / "clips" / "c3.mp4", 100)
    report = pack(config)
    assert "c0.mp4 cannot be read" in report["dropped"]["c0"] and "sha256" in report["dropped"]["c3"]
    assert report["clips"] == 3 and "2 clips dropped" in capsys.readouterr().out
    assert [Shards(config.output).blob(i) for i in range(3)] == [blobs[1], blobs[2], blobs[4]]
    again = pack(config)
    assert again["kept"] == ["train-00000.h5"] and again["dropped"] == report["dropped"]
    prepare(config.prepared, blobs)
    assert pack(config)["written"] == ["train-00000.h5"] and len(Shards(config.output)) == 5


def test_a_flipped_byte_is_found_by_reading_and_by_verify(tmp_path, capsys):
    blobs = noise(4)
    config = Pack(prepare(tmp_path / "prepared", blobs), tmp_path / "shards")
    pack(config)
    path = config.output / "train-00000.h5"
    assert main(Verify(config.output)) == 0
    flip(path, path.read_bytes().index(blobs[2]) + 77)
    shards = Shards(config.output)
    with pytest.raises(DamagedClip, match=r"clip 'c2' in .*train-00000.h5 is damaged.*delete it and run"):
        shards.blob(2)
    assert [shards.blob(i) for i in (0, 1, 3)] == [blobs[0], blobs[1], blobs[3]]
    assert len(verify(Verify(config.output))) == 1
    capsys.readouterr()
    assert main(Verify(path)) == 1 and "'c2'" in capsys.readouterr().out


def test_missing_cut_off_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder that training/pack.py wrote to"):
        Shards(tmp_path / "nowhere")
    config = Pack(prepare(tmp_path / "prepared", noise(4)), tmp_path / "shards", shard_bytes=10_000)
    pack(config)
    first, second = sorted(config.output.glob("*.h5"))
    with pytest.raises(ValueError, match="no clips of split 'test'.*another --validation-share or --test-share"):
        Shards(config.output, "test")
    opened = Shards(config.output)
    second.rename(tmp_path / "away")
    for read in (lambda: Shards(config.output), lambda: opened.blob(3), lambda: Shards(second)):
        with pytest.raises(FileNotFoundError, match=r"train-00001.h5 is missing"):
            read()
    assert any("missing" in problem for problem in verify(Verify(config.output)))
    second.write_bytes((tmp_path / "away").read_bytes()[:-3000])
    with pytest.raises(ValueError, match="train-00001.h5 is cut off"):
        Shards(config.output)
    with h5py.File(second, "w") as file:
        file["bytes"] = np.zeros(3, np.uint8)
    for read in (lambda: Shards(config.output), lambda: pack(config)):  # pack does not overwrite what is not its own
        with pytest.raises(ValueError, match="no shard"):
            read()


def test_shards_of_another_plan_are_not_left_beside_the_new_ones(tmp_path):
    prepared = prepare(tmp_path / "prepared", noise(6))
    pack(Pack(prepared, tmp_path / "shards", shard_bytes=10_000))
    with pytest.raises(ValueError, match="train-00001.h5, train-00002.h5, which this manifest"):
        pack(Pack(prepared, tmp_path / "shards"))


@pytest.mark.parametrize("edit, message", [
    (lambda text: text.replace("sha256", "hash"), "has no column sha256"),
    (lambda text: text.replace(",train,", ",holdout,"), "split must be one of"),
    (lambda text: text.replace("c1,clips", "c0,clips"), "comes twice"),
    (lambda text: text.replace(",32000,", ",fast,"), "line 2.*run training/prepare.py again"),
    (lambda text: text.splitlines()[0], "nothing to pack"),
])
def test_an_unusable_manifest_is_refused_with_its_line(tmp_path, edit, message, capsys):
    prepared = prepare(tmp_path / "prepared", noise(2))
    manifest = prepared / "manifest.csv"
    manifest.write_text(edit(manifest.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        pack(Pack(prepared, tmp_path / "shards"))
    assert main(Pack(prepared, tmp_path / "shards")) == 1 and capsys.readouterr().err.count("\n") == 1


def _digests(shards: Shards, queue) -> None:
    queue.put([hashlib.sha256(shards.blob(i)).hexdigest() for i in range(len(shards))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_and_spawned_processes_read_the_same_bytes(tmp_path, method):
    blobs = noise(6)
    pack(Pack(prepare(tmp_path / "prepared", blobs), tmp_path / "shards", shard_bytes=10_000))
    shards = Shards(tmp_path / "shards")
    assert shards.blob(0) == blobs[0]  # its file is open when the process starts
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_digests, args=(shards, queue))
    process.start()
    assert queue.get(timeout=60) == [hashlib.sha256(blob).hexdigest() for blob in blobs]
    process.join()
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.blob(5) == shards.blob(5) and copy.fingerprint == shards.fingerprint


def test_the_fingerprint_is_of_the_content_not_of_place_or_shard_size(tmp_path):
    prepared = prepare(tmp_path / "prepared", noise(6))
    pack(Pack(prepared, tmp_path / "a"))
    pack(Pack(prepared, tmp_path / "b", shard_bytes=10_000))
    pack(Pack(prepare(tmp_path / "other", noise(5)), tmp_path / "c"))
    a, b, c = (Shards(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_stats_count_by_split_and_label(tmp_path, capsys):
    blobs = noise(6)
    prepared = prepare(tmp_path / "prepared", blobs, ("train", "train", "test"), ("dog|cat", "dog", ""))
    pack(Pack(prepared, tmp_path / "s"))
    found = stats(Stats(tmp_path / "s"))
    assert found["labels"] == {"dog": 4, "cat": 2, "(none)": 2}
    assert found["splits"]["train"]["clips"] == 4 and found["splits"]["test"]["hours"] == pytest.approx(4 / 3600)
    assert sum(split["mp4_bytes"] for split in found["splits"].values()) == sum(map(len, blobs))
    listed = json.loads((tmp_path / "s" / "shards.json").read_text())["shards"]
    assert listed.keys() == {"train-00000.h5", "test-00000.h5"}
    assert "train" in capsys.readouterr().out
