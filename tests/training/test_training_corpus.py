"""A corpus for everyone: composed clips are what prepare.py takes, nothing leaks between splits, a run goes on."""

import base64
import csv
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import cv2
import media
import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros import features  # noqa: E402
from avssl_ros.audio_input import read_audio  # noqa: E402
from training import corpus as module  # noqa: E402
from training.corpus import STAMPS, STAMPS_FOLDER, CorpusConfig, corpus, gather, labels_of, make, plan  # noqa: E402
from training.data import Item, read_concepts, read_items  # noqa: E402
from training.prepare import PrepareConfig, prepare  # noqa: E402

pytestmark = pytest.mark.train
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
RATE = 32000
BIRDS = ("blackbird", "crow", "cuckoo", "lark", "owl", "penguin", "pigeon", "vulture")


def texture(seed, height, width):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 235, (8, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def voice(seed, seconds=1.0):
    rng = np.random.default_rng(seed)
    parts = [media.tone(0.1, RATE, rng.uniform(200, 6000), rng.uniform(0.1, 0.9)) for _ in range(round(10 * seconds))]
    return np.concatenate(parts)


def stamp(folder, name, seed):
    """A cut-out and its recording, as the package has them."""
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    alpha = np.zeros((60, 80, 1), np.uint8)
    cv2.ellipse(alpha, (40, 30), (30, 22), 0, 0, 360, 255, -1)
    cv2.imwrite(str(path), np.dstack([texture(seed, 60, 80), alpha]))
    media.write_wav(folder / f"{name}.wav", voice(seed), RATE)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Eight birds, two sheep with one recording, a cow, and six places; clips are made in this process."""
    stamps = tmp_path / "downloads" / STAMPS / STAMPS_FOLDER
    for seed, name in enumerate(BIRDS):
        stamp(stamps, f"animals/birds/{name}", seed)
    for seed, name in enumerate(("ram", "mountaingoat", "cow"), 20):
        stamp(stamps, f"animals/mammals/bovines/{name}", max(seed, 21))  # two have one recording
    for seed in range(6):
        (tmp_path / "places").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "places" / f"{seed}.png"), texture(100 + seed, 64, 128))
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers))
    return CorpusConfig(tmp_path / "out", data=tmp_path / "nothing", clips=8, panoramas=(tmp_path / "places",),
                        downloads=tmp_path / "downloads", fetch=False, seconds=1.0, fps=15, side=64,
                        validation_share=0.25, test_share=0.25, workers=2)  # fmt: skip


def recipes_of(config):
    return plan(gather(config)[0], config, [])


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state(config):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in composited(config)}


def composited(config):
    return sorted((config.output / "composited").iterdir())


# --------------------------------------------------------------------------------------------------------------- clips


def test_prepare_takes_the_list_and_keeps_every_clip(config):
    result = corpus(config)
    counts = prepare(PrepareConfig(config.output / "collected.csv", config.output / "prepared", side=64, workers=2,
                                   least_seconds=0.9))  # fmt: skip
    assert result.counts == {"made": 8}
    assert counts["kept"] == counts["clips"] == 8, table(config.output / "prepared" / "dropped.csv")
    listed = {row["id"]: row for row in table(config.output / "collected.csv")}
    for row in table(config.output / "prepared" / "manifest.csv"):
        first = listed[row["id"].rsplit("-", 1)[0]]
        assert (row["split"], row["labels"], row["source"]) == (first["split"], first["label"], first["source"])
        assert row["source"].startswith(f"debian:{STAMPS}/animals/") and float(row["duration"]) == 1.0
    assert {row["split"] for row in listed.values()} == {"train", "validation", "test"}


def test_a_clip_shows_its_object_moving_and_sounds_at_a_level_above_the_noise(config):
    recipe = recipes_of(config)[0]
    (config.output / "composited").mkdir(parents=True)
    assert make(recipe, config) == "made"
    path = module.clip_path(recipe, config)
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)
        assert (container.streams.video[0].codec.name, container.streams.audio[0].codec.name) == ("h264", "aac")
    samples = features.as_mono(*read_audio(path))
    assert frames.shape == (15, 64, 86, 3) and frames.std(axis=0).max() > 10
    assert len(samples) / RATE == pytest.approx(1.0, abs=0.05)
    assert -35 < features.loudest_block_db(samples) < -9


def test_an_object_is_pasted_where_its_opacity_says():
    """A red cut-out over a blue place, white where nothing is to be seen."""
    picture, alpha = np.full((40, 60, 3), 255, np.uint8), np.zeros((40, 60), np.float32)
    picture[10:30, 15:45], alpha[10:30, 15:45] = (255, 0, 0), 1
    config = CorpusConfig(Path("unused"), side=64, seconds=1.0, fps=5)
    place = np.zeros((64, 128, 3), np.uint8) + np.uint8([0, 0, 255])
    for frame in module.pictures(np.random.default_rng(0), (picture, alpha), (place, None), True, config):
        red, blue = (np.abs(frame.astype(int) - colour).max(axis=2) < 40 for colour in ([255, 0, 0], [0, 0, 255]))
        assert red.mean() > 0.02 and blue.mean() > 0.3 and (frame[..., 1] < 120).all()


def test_a_recording_at_a_random_level_lies_over_faint_noise():
    half = np.concatenate([voice(1), np.zeros(RATE, np.float32)])
    loud, faint = [], []
    for seed in range(40):
        samples = module.sound(np.random.default_rng(seed), half, None, 2.0)
        blocks = np.sqrt(np.square(samples.reshape(20, -1)).mean(axis=1))
        loud.append(features.loudest_block_db(samples))
        faint.append(20 * np.log10(blocks.min()))
        assert len(samples) == 2 * RATE and np.abs(samples).max() <= 1
    assert -34 < min(loud) < -25 and -18 < max(loud) < -10
    assert -85 < min(faint) and max(faint) < -48


def test_a_clip_is_a_function_of_seed_and_index(config, tmp_path, monkeypatch):
    """What is given to the encoder: x264 itself writes other bytes each time on some processors with AVX-512."""
    made, encode = [], module.encode_mp4

    def remember(frames, heard, *others, **settings):
        frames = list(frames)
        made.append(b"".join(frame.tobytes() for frame in frames) + heard.tobytes())
        return encode(frames, heard, *others, **settings)

    monkeypatch.setattr(module, "encode_mp4", remember)

    def clips(**other):
        changed = replace(config, **other)
        changed.output.joinpath("composited").mkdir(parents=True, exist_ok=True)
        chosen = recipes_of(changed)[:3]
        assert [make(recipe, changed) for recipe in chosen] == ["made"] * 3
        assert all(module.clip_path(recipe, changed).stat().st_size > 1000 for recipe in chosen)
        return dict(zip((recipe.id for recipe in chosen), made[-3:], strict=True))

    first = clips()
    assert clips(output=tmp_path / "again", clips=3) == first
    make(replace(recipes_of(config)[0], id="moved", index=99), config)  # of the same material
    assert made[-1] not in first.values()
    assert not set(clips(output=tmp_path / "other", seed=1)) & set(first)
    assert not set(clips(output=tmp_path / "longer", seconds=1.2)) & set(first)


# -------------------------------------------------------------------------------------------------------------- splits


def test_nothing_is_in_two_splits(config):
    recipes = recipes_of(replace(config, clips=400))
    splits = defaultdict(set)
    for recipe in recipes:
        for part in recipe.materials():
            splits[part.item.group].add(recipe.split)
            splits[part.path].add(recipe.split)
            if part.path.suffix == ".wav":
                splits[part.path.read_bytes()].add(recipe.split)
    assert max(map(len, splits.values())) == 1
    assert {recipe.split for recipe in recipes} == {"train", "validation", "test"}
    for split, share in (("train", 0.5), ("validation", 0.25), ("test", 0.25)):
        assert np.mean([recipe.split == split for recipe in recipes]) == pytest.approx(share, abs=0.08)


def test_photo_and_recording_are_of_one_concept_and_one_group_shares_a_recording(config):
    for recipe in recipes_of(replace(config, clips=100)):
        assert recipe.photo.item.concept == recipe.sound.item.concept == recipe.concept
    groups = {m.item.file: m.item.group for m in gather(config)[0]}
    sheep = {groups[f"animals/mammals/bovines/{name}"] for name in ("ram.wav", "ram.png", "mountaingoat.png")}
    assert len(sheep) == 1 and groups["animals/mammals/bovines/cow.png"] not in sheep


def test_beside_the_indexed_data_packages_are_test_material(config, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    items = []
    for split in ("train", "validation", "test"):
        for kind, file in (("photo", f"{split}.jpg"), ("sound", f"{split}.wav"), ("panorama", f"{split}_place.jpg")):
            if kind == "sound":
                media.write_wav(data / file, voice(len(items)), RATE)
            else:
                cv2.imwrite(str(data / file), texture(len(items), 64, 128))
            concept = "background" if kind == "panorama" else "dog"
            items.append(Item(kind, file, concept, (), split, file, "somebody/dogs", "MIT"))
    lost = replace(items[0], file="lost.jpg")
    copy = replace(items[1], source=f"debian:{STAMPS}")  # which is read from the package itself
    monkeypatch.setattr(module, "read_items", lambda: [*items, lost, copy])
    material = gather(replace(config, data=data))[0]
    split_of = {part.item.split for part in material if part.item.source == f"debian:{STAMPS}"}
    dogs = [part.item for part in material if part.item.source == "somebody/dogs"]
    assert split_of == {"test"} and dogs == items
    result = corpus(replace(config, data=data, clips=12))
    assert all(row["label"] == "dog" or row["split"] == "test" for row in result.rows)
    sources = table(config.output / "SOURCES.csv")
    assert {row["licence"] for row in sources} == {"MIT", "GPL-2", "not stated"}
    assert sum(int(row["clips"]) for row in sources if row["kind"] == "sound") == 12


# ------------------------------------------------------------------------------------------------------------ material


def test_spoken_names_drawings_and_silent_recordings_are_left_out(config):
    folder = config.downloads / STAMPS / STAMPS_FOLDER
    for name in ("animals/birds/owl_desc_fr", "animals/birds/cartoon/duck", "symbols/math/1", "animals/fish/trout"):
        stamp(folder, name, 5)
    media.write_wav(folder / "animals/birds/heron.wav", np.zeros(RATE), RATE)
    (folder / "animals/birds/broken.ogg").write_bytes(b"no sound")
    files = [part.item.file for part in module.stamps(folder)]
    assert len(files) == 2 * (len(BIRDS) + 3)
    assert not any(word in file for file in files for word in ("desc", "duck", "symbols", "trout", "heron", "broken"))


def test_the_tables_name_concepts_of_ours():
    names = {concept.name for concept in read_concepts()}
    assert {concept for _, concept in module.STAMP_CONCEPTS if concept} <= names
    assert {concept for _, concept in module.HEARD} <= names


@pytest.mark.parametrize(
    ("what", "labels"),
    [("woman speaking", "person"), ("small bird singing", "bird"), ("woman singing with guitar", "person|guitar"),
     ("cat and dog on sofa barking", "dog"), ("welding metal", ""), ("humanoid robot speaking", ""),
     ("drone over field (360)", ""), ("man firing a rifle", "gun")],
)  # fmt: skip
def test_labels_of_a_real_clip(what, labels):
    assert labels_of(what) == labels


def test_real_clips_come_as_they_are_and_those_of_one_repository_are_of_one_split(config, tmp_path):
    folder = tmp_path / "data" / "clips"
    folder.mkdir(parents=True)
    columns = ("file", "what_sounds", "source_repo", "source_path", "licence", "start_s")
    rows = [{"file": f"{repo}_{n}.mp4", "what_sounds": "woman speaking", "source_repo": f"some/{repo}",
             "source_path": f"{n // 2}.mp4", "licence": "MIT", "start_s": 10.0 * n}
            for repo in range(12) for n in range(3)]  # fmt: skip
    module.write_table(folder / "index.csv", columns, rows)
    for row in rows[:-1]:
        (folder / row["file"]).write_bytes(b"")
    result = corpus(replace(config, data=tmp_path / "data", clips=2))
    listed = [row for row in table(config.output / "collected.csv") if row["source"].startswith("some/")]
    splits = defaultdict(set)
    for row in listed:
        splits[row["source"].rsplit("/", 1)[0]].add(row["split"])
    assert len(splits) == 12 and len({row["source"] for row in listed}) == 23
    assert len(listed) == 35 and Path(listed[0]["file"]).samefile(folder / "0_0.mp4")
    assert max(map(len, splits.values())) == 1 and len({*map(tuple, splits.values())}) > 1
    assert {row["label"] for row in listed} == {"person"} and listed[1]["source_start"] == "10.0"
    assert sum(row["origin"] == "real video" for row in result.rows) == 35


def test_panoramas_of_the_npm_package_are_read_with_all_their_light(config, monkeypatch):
    light = np.full((32, 64, 3), 0.2, np.float32)
    light[:, 32:] = 3.0
    light[4:6, 4:6] = -1.0, -1.0, 5000.0  # what the decoder makes of the sun
    exr = io.BytesIO()
    with av.open(exr, "w", format="image2pipe") as container:
        stream = container.add_stream("exr", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "gbrpf32le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(light, format="gbrpf32le")))
        container.mux(stream.encode())
    text = f"export default 'data:application/exr;base64,{base64.b64encode(exr.getvalue()).decode()}'".encode()
    with tarfile.open(config.downloads / module.ASSETS, "w:gz") as package:
        for name in ("package/hdri/park.exr.js", "package/index.js"):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            package.addfile(member, io.BytesIO(text))
    with pytest.raises(module.Missing, match=r"pmndrs-assets-1.7.0.tgz is not release 1.7.0"):
        module.assets_folder(config)
    digest = module.hashlib.sha512((config.downloads / module.ASSETS).read_bytes()).digest()
    monkeypatch.setattr(module, "ASSETS_SHA512", base64.b64encode(digest).decode())
    (park,) = module.panorama_folder(module.assets_folder(config), "@pmndrs/assets", "CC0-1.0")
    picture, _ = module.read_picture(park.path)
    assert picture.shape == (32, 64, 3) and (picture[5, 5] > 240).all()
    assert picture[20, 48].mean() - picture[20, 10].mean() > 60 and picture[20, 48].mean() < 250


# ------------------------------------------------------------------------------------------------------ what is missing


def test_without_any_material_the_error_says_what_to_install(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sudo apt-get install tuxpaint-stamps-default") as error:
        corpus(replace(config, downloads=tmp_path / "none", panoramas=()))
    assert "@pmndrs/assets" in str(error.value) and str(config.data) in str(error.value)


def test_without_a_place_the_error_says_so(config):
    with pytest.raises(FileNotFoundError, match="no panorama or photograph as background"):
        corpus(replace(config, panoramas=()))


def test_without_debians_tools_the_message_says_where_to_put_the_package(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    with pytest.raises(module.Missing, match=r"apt-get and dpkg-deb absent .* copy its /usr/share/thing to .*none"):
        module.debian_folder("thing", "usr/share/thing", replace(config, fetch=True, downloads=tmp_path / "none"))


@pytest.mark.parametrize(
    ("says", "message"),
    [("E: Unable to locate package thing", "package lists are missing or old: sudo apt-get update"),
     ("E: Failed to fetch http://a/b", r"Failed to fetch http://a/b: try again later")],
)  # fmt: skip
def test_what_apt_says_is_explained_and_nothing_is_left(config, tmp_path, monkeypatch, says, message):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        (programs / name).write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 100\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    downloads = tmp_path / "new"
    with pytest.raises(module.Missing, match=message):
        module.debian_folder("thing", "usr/share/thing", replace(config, fetch=True, downloads=downloads))
    assert [path.name for path in downloads.iterdir()] == ["journal.jsonl"]


def test_a_package_is_fetched_once(config, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text(f"#!/bin/sh\necho call >> {tmp_path}/calls\ntouch $2_1_all.deb\n")
    (programs / "dpkg-deb").write_text('#!/bin/sh\ntest -f "$2" && mkdir -p "$3/usr/share/thing" && '
                                       'touch "$3/usr/share/thing/file"\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    config = replace(config, fetch=True, downloads=Path("new"))  # as by default, beside where the command is given
    (config.downloads / ".partial-killed" / "thing").mkdir(parents=True)
    for _ in range(2):
        folder = module.debian_folder("thing", "usr/share/thing", config)
        assert folder == Path("new/thing/usr/share/thing") and (folder / "file").exists()
    assert (tmp_path / "calls").read_text() == "call\n"
    assert {path.name for path in config.downloads.iterdir()} == {"journal.jsonl", "thing"}


def test_damaged_material_costs_its_clips_only(config):
    wanted = recipes_of(config)
    bad = wanted[0].photo.path
    bad.write_bytes(bad.read_bytes()[:30])
    spoilt = sum(recipe.photo.path == bad for recipe in wanted)
    result = corpus(config)
    reason = next(word for word in result.counts if word.startswith("left out, damaged material"))
    assert str(bad) in reason and result.counts[reason] == spoilt and result.counts["made"] == 8 - spoilt
    assert len(table(config.output / "collected.csv")) == len(composited(config)) == 8 - spoilt
    assert str(bad) in module.summary(result)


def test_a_full_disk_ends_the_run_with_what_was_made_listed(config, monkeypatch):
    write, calls = Path.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="is full: free some space and start again"):
        corpus(replace(config, workers=1))
    assert len(table(config.output / "collected.csv")) == len(composited(config)) == 3


@pytest.mark.parametrize("wrong", [{"seconds": 0.1}, {"side": 63}, {"test_share": 0.9}, {"workers": 0}])
def test_a_wrong_configuration_is_refused(config, wrong):
    with pytest.raises(ValueError, match="must be|wanted is"):
        replace(config, **wrong)


# -------------------------------------------------------------------------------------------------------------- resume


def pictures_in(path):
    with av.open(str(path)) as clip:
        return np.array([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]).astype(int)


def test_a_second_run_makes_nothing_and_a_lost_clip_again(config):
    corpus(config)
    before, lost = state(config), composited(config)[3]
    (config.output / "composited" / "torn.partial").write_bytes(b"half")
    assert corpus(config).counts == {"already there": 8} and state(config) == before
    heard, seen = read_audio(lost)[0], pictures_in(lost)
    lost.unlink()
    assert corpus(config).counts == {"already there": 7, "made": 1} and np.array_equal(read_audio(lost)[0], heard)
    again = pictures_in(lost)  # as x264 may write other bytes each time, alike but for its quantization
    assert again.shape == seen.shape and np.abs(again - seen).mean() < 4.0
    assert corpus(replace(config, clips=10)).counts == {"already there": 8, "made": 2}
    assert {name: state(config)[name] for name in before if name != lost.name} == {
        name: value for name, value in before.items() if name != lost.name
    }


def command_line(config, *more):
    return [sys.executable, str(ROOT / "training" / "corpus.py"), "--output", config.output, "--data", config.data,
            "--panoramas", config.panoramas[0], "--downloads", config.downloads, "--no-fetch", "--workers", "2",
            *more]  # fmt: skip


def test_the_command_line_says_what_it_found_and_made(config):
    """With real processes."""
    command = command_line(config, "--clips", "3", "--side", "64", "--seconds", "1")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in ("11 sounds of debian:tuxpaint", "6 panoramas of own:places", "not found: npm's @pmndrs", "3 made"):
        assert line in done.stdout
    assert len(composited(config)) == len(table(config.output / "collected.csv")) == 3


@pytest.mark.slow
def test_a_killed_run_leaves_whole_clips_and_no_process_and_is_finished_by_the_next(config):
    command = command_line(config, "--clips", "40", "--seconds", "2")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(config.output.glob("composited/*.mp4"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group_lives(process.pid)
    early = [path for path in composited(config) if path.suffix == ".mp4"]
    assert 3 <= len(early) < 40
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(early)} already there" in done.stdout and f"{40 - len(early)} made" in done.stdout
    assert len(composited(config)) == len(table(config.output / "collected.csv")) == 40
    for path in early:
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 30


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# -------------------------------------------------------------------------------------------------------- real material


@pytest.mark.shared
def test_the_shared_material_makes_clips_that_prepare_keeps(config, tmp_path):
    shared = replace(config, data=SHARED, downloads=tmp_path / "none", panoramas=(), clips=6, side=128, seconds=2.0)
    result = corpus(shared)
    real = [row for row in result.rows if row["origin"] == "real video"]
    concepts = {concept.name for concept in read_concepts()}
    assert result.counts == {"made": 6} and len(real) == 65
    assert {label for row in result.rows for label in row["label"].split("|") if label} <= concepts
    assert sum(bool(row["label"]) for row in real) > 40
    files = {item.file: item.split for item in read_items()}
    sources = [row for row in table(shared.output / "SOURCES.csv") if row["kind"] != "clip"]
    assert sources and all(files[row["file"]] == row["split"] and row["licence"] for row in sources)
    few = [row for row in result.rows if row not in real] + real[:2]
    module.write_table(shared.output / "few.csv", module.COLUMNS, few)
    assert prepare(PrepareConfig(shared.output / "few.csv", tmp_path / "prepared", workers=2, side=128,
                                 least_seconds=1.8))["kept"] == 8  # fmt: skip
