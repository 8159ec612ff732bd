"""Mixed scenes carry their truth exactly, and splits keep items apart."""

import copy
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros import features  # noqa: E402
from avssl_ros.geometry import angle_between, pixel_to_direction  # noqa: E402
from training import data, mixing  # noqa: E402
from training.data import Item, read_concepts, read_items, read_more_items  # noqa: E402
from training.losses import BACKGROUND, IGNORE  # noqa: E402
from training.mixing import PASTED, Collection, MixConfig, SceneMixer, at_level, excerpt, paste_on_sphere  # noqa: E402
from training.scenes import NEGATIVES, SEPARATION, SceneGenerator  # noqa: E402

pytestmark = pytest.mark.train
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_no_item_or_group_is_in_two_splits():
    splits = {}
    for item in read_items():
        splits.setdefault((item.kind, item.group), set()).add(item.split)
    assert len(splits) > 3000 and all(len(found) == 1 for found in splits.values())


def test_near_duplicates_that_only_a_third_one_joins_are_one_group(monkeypatch):
    hashes = {"a": 0, "b": 2**10 - 1, "c": 2**5 - 1, "d": 2**40 - 2**20}  # bits: c differs in five from a and b
    monkeypatch.setattr(data, "difference_hash", lambda path: hashes[path.name])
    rows = [{"file": name} for name in hashes]
    data._group_near_duplicates(Path(), rows)
    assert [row["group"] for row in rows] == ["a", "a", "a", "d"]


def test_what_the_classifier_was_trained_on_tests_nothing():
    assert {item.split for item in read_items() if item.source == "images"} == {"train"}


def test_imagenet_photographs_of_no_concept_are_of_people_or_of_nothing_that_sounds_or_left_out():
    photos = [item for item in read_items("photo") if item.source == "images"]
    shown = {Path(item.file).stem.partition("_")[2]: item.concept for item in photos}
    assert {shown[name] for name in ("box_turtle", "teapot", "crash_helmet", "pizza")} == {"background"}
    assert {shown[name] for name in ("abaya", "military_uniform", "groom")} == {"person"}
    assert {shown[name] for name in ("drumstick", "electric_fan", "tractor", "ostrich")} == {""}
    assert shown["violin"] == "violin" and shown["canoe"] == "boat"


def test_concepts_have_unique_names_and_labels():
    concepts = read_concepts()
    assert len({c.name for c in concepts}) == len({c.label for c in concepts}) == len(concepts)


def test_a_picture_on_the_sphere_is_where_and_as_large_as_it_was_asked_to_be():
    panorama = np.zeros((320, 640, 3), np.uint8)
    photo, alpha = np.full((60, 60, 3), 255, np.uint8), np.ones((60, 60), np.float32)
    opacity = paste_on_sphere(panorama, photo, alpha, np.pi - 0.05, 0.2, np.radians(40))
    rows, columns = np.nonzero(opacity > 0.5)
    angle = np.degrees(angle_between(*pixel_to_direction(columns, rows, 640, 320), np.pi - 0.05, 0.2))
    assert 26 <= angle.max() <= 30  # the corners: half of 40 degrees times the square root of two, less the tangent
    assert angle.min() < 1 and panorama[rows, columns].min() >= 127  # half covered at the edge


def test_excerpts_have_the_length_asked_for_and_are_not_the_silence():
    rng = np.random.default_rng(0)
    recording = np.concatenate([np.zeros(160000, np.float32), np.ones(32000, np.float32) * 0.3])
    for _ in range(5):
        assert len(excerpt(rng, recording)) == len(excerpt(rng, recording[-4000:])) == 64000
    assert np.abs(excerpt(rng, recording[-4000:])).max() > 0
    assert features.loudest_block_db(at_level(recording, -23.0)) == pytest.approx(-23.0, abs=0.1)


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Two of them as items of a folder; what a file says is its level in percent, and how often was asked is kept."""
    folder, asked = tmp_path / "data", []
    folder.mkdir()
    for name, text in (("a.wav", "10"), ("b.wav", "20")):
        (folder / name).write_text(text)

    def read(path: Path) -> tuple[np.ndarray, int]:
        asked.append(path)
        return np.full(64, int(path.read_text()) / 100, np.float32), features.SAMPLE_RATE

    monkeypatch.setattr(mixing, "read_audio", read)
    items = [Item("sound", name, "dog", (), "train", name, "", "") for name in ("a.wav", "b.wav")]
    return folder, items, asked


def first_level(collection: Collection) -> int:
    return round(100 * float(collection.sound(collection.sounds["dog"][0])[0]))


def test_decoded_recordings_are_those_of_the_files_that_are_there_now(recordings, tmp_path):
    folder, items, asked = recordings
    cache = tmp_path / "cache" / "sounds.npz"
    for _ in range(2):
        assert first_level(Collection(items, folder, read_concepts(), cache)) == 10
    assert len(asked) == 2 and [path.name for path in cache.parent.iterdir()] == ["sounds.npz"]
    (folder / "a.wav").write_text("30")  # recorded anew: as long as before, but later
    os.utime(folder / "a.wav", (1, 1))
    assert first_level(Collection(items, folder, read_concepts(), cache)) == 30
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "a.wav").write_text("40")
    os.utime(tmp_path / "other" / "a.wav", (1, 1))
    assert first_level(Collection(items, tmp_path / "other", read_concepts(), cache)) == 40
    (tmp_path / "other" / "b.wav").unlink()
    with pytest.raises(FileNotFoundError, match="b.wav does not exist"):
        Collection(items, tmp_path / "other", read_concepts(), cache)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_what_is_left_of_half_a_write_is_decoded_anew(recordings, tmp_path, share):
    folder, items, asked = recordings
    cache = tmp_path / "sounds.npz"
    Collection(items, folder, read_concepts(), cache)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:int(share * len(whole))])
    assert first_level(Collection(items, folder, read_concepts(), cache)) == 10 and len(asked) == 4
    Collection(items, folder, read_concepts(), cache)
    assert len(asked) == 4


def test_a_write_that_is_broken_off_leaves_what_was_there_and_the_run_goes_on(recordings, tmp_path, monkeypatch):
    folder, items, _ = recordings
    cache = tmp_path / "sounds.npz"
    Collection(items, folder, read_concepts(), cache)
    whole = cache.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    (folder / "a.wav").write_text("5")
    with pytest.warns(RuntimeWarning, match="No space left on device.*decoded anew"):
        assert first_level(Collection(items, folder, read_concepts(), cache)) == 5
    assert cache.read_bytes() == whole and not list(tmp_path.glob("*.partial"))
    with pytest.warns(RuntimeWarning, match="can't be kept in"):  # where no folder can be made
        assert first_level(Collection(items, folder, read_concepts(), folder / "a.wav" / "sounds.npz")) == 5


def test_of_few_concepts_with_people_among_them_something_is_always_out_of_view(tmp_path, monkeypatch):
    monkeypatch.setattr(mixing, "read_audio", lambda path: (np.full(16000, 0.1, np.float32), 32000))
    cv2.imwrite(str(tmp_path / "room.png"), np.full((64, 128, 3), 90, np.uint8))
    names, items = ("person", "crowd", "dog", "cat", "bell"), []
    items.append(Item("panorama", "room.png", "background", (), "train", "room", "", ""))
    for name in names:
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((64, 64, 3), 250, np.uint8))
        items += [Item(kind, f"{name}.{end}", name, (), "train", name, "", "")
                  for kind, end in (("photo", "png"), ("sound", "wav"))]
    generator = SceneGenerator(Collection(items, tmp_path, read_concepts()), 0, least_photos=1, least_sounds=1)
    heard = set()
    for index in range(24):
        scene = generator.negative(index, "offscreen sound")
        shown = {placed.concept for placed in scene.objects}
        heard.add(scene.offscreen)
        assert scene.offscreen not in shown and len(shown) == len(scene.objects) >= 3
        assert scene.offscreen not in ("person", "crowd") or not shown & {"person", "crowd"}
    assert heard == set(names)


def plain(concepts: int, videos: int, told: bool = True) -> SimpleNamespace:
    """A collection of as many concepts of 30 photographs and recordings each, and videos of one, in plain grey."""
    names = [f"concept {n}" for n in range(concepts)] + [f"video {n}" for n in range(videos)]
    items = {name: [0] * (30 if name.startswith("c") else 1) for name in names} | {"background": []}
    found = SimpleNamespace(
        class_of={name: index for index, name in enumerate(names)}, photos=items, sounds=items,
        videos=frozenset(names[concepts:] if told else ()), photo=lambda item: np.full((64, 64, 3), 90, np.uint8),
        sound=lambda item: np.full(64000, 0.1, np.float32), heads=lambda item, *size: np.zeros(size, np.uint8),
        place=lambda rng: (np.full((64, 128, 3), 40, np.uint8), np.zeros((64, 128), np.uint8)))
    found.scene = lambda key: found
    return found


def test_videos_of_no_known_label_are_at_most_half_of_what_is_seen_and_heard():
    config = MixConfig(views=1, no_object=0, full_view=1, two_sounds=0, no_sound=0, reverberant=0, offscreen=1)
    mixer = SceneMixer(plain(8, 2000), config, 0)
    scenes = [mixer[index] for index in range(40)]
    for part in ("view_concept", "sound_concept"):
        drawn = np.concatenate([scene[part] for scene in scenes])
        assert 0.3 < (drawn[drawn >= 0] >= 8).mean() < 0.65
    few = SceneMixer(plain(8, 4), config, 0)  # these are as likely as ever
    assert few.probability[8] == pytest.approx(1 / (4 + 8 * 30**0.5))


def test_scenes_of_videos_or_of_concepts_alone_are_what_they_were():
    for concepts, videos in ((0, 30), (8, 0), (8, 4)):
        told, untold = (SceneMixer(plain(concepts, videos, told), MixConfig(views=1, sounds=3), 0)[2]
                        for told in (True, False))
        assert all(np.array_equal(told[key], untold[key]) for key in told)


@pytest.fixture(scope="module")
def validation():
    items = [item for item in read_items(split="validation")]
    return Collection(items, SHARED, read_concepts(), None)


@pytest.mark.shared
def test_training_scenes_are_a_function_of_seed_and_index(validation):
    mixers = [SceneMixer(validation, MixConfig(), seed) for seed in (0, 0, 1)]
    first, again, other = (mixer[3] for mixer in mixers)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["views"], other["views"])
    assert first["views"].shape == (4, 224, 224, 3) and first["sound"].shape == (6, 128, 200)


@pytest.mark.shared
def test_owners_name_objects_that_are_there(validation):
    mixer = SceneMixer(validation, MixConfig(), 0)
    heard = silent = 0
    for index in range(8):
        scene = mixer[index]
        for owners, concepts in (("view_owner", "view_concept"), ("sound_owner", "sound_concept")):
            for owner, concept in zip(scene[owners], scene[concepts]):
                present = set(np.unique(owner)) - {BACKGROUND, IGNORE}
                assert all(concept[k] >= 0 for k in present)
        heard += int((scene["sound_owner"] >= 0).any(axis=(1, 2)).sum())
        silent += int((scene["sound_concept"] < 0).all(axis=1).sum())
    assert heard > 10 and silent >= 1


@pytest.mark.shared
def test_benchmark_scenes_keep_objects_apart_and_negatives_hold_no_sounding_object(validation):
    generator = SceneGenerator(validation, 0, least_sounds=1)
    for index in range(6):
        scene = generator.scene(index, sounding=2)
        azimuths = np.sort([placed.azimuth % (2 * np.pi) for placed in scene.objects])
        gaps = np.diff([*azimuths, azimuths[0] + 2 * np.pi])
        assert gaps.min() >= np.radians(SEPARATION) - 1e-6 and len(scene.sounding) == 2
        assert scene.image.shape == (640, 1280, 3) and np.abs(scene.sound).max() <= 1.0
    twins = generator.scene(1, twin=True)
    (sounding,) = twins.sounding
    assert [placed.concept for placed in twins.objects].count(sounding.concept) == 2
    for index, kind in enumerate(NEGATIVES):
        negative = generator.negative(index, kind)
        assert negative.sounding == [] and len(negative.sound) == 64000
        assert (np.abs(negative.sound).max() == 0) == (kind == "silence")


def test_further_recordings_are_training_items_and_wrong_tables_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="index.csv"):
        read_more_items(tmp_path)
    (tmp_path / "index.csv").write_text("file,concept\nwoof.ogg,dog\nroom.ogg,background\n")
    items = read_more_items(tmp_path)
    assert {(item.kind, item.concept, item.split) for item in items} == {
        ("sound", "dog", "train"), ("sound", "background", "train")}  # fmt: skip
    assert items[0].file == str(tmp_path / "woof.ogg")
    (tmp_path / "index.csv").write_text("file,concept\nwoof.ogg,hound\n")
    with pytest.raises(ValueError, match="hound"):
        read_more_items(tmp_path)


@pytest.mark.shared
def test_heads_of_players_are_people_and_their_bodies_are_not_the_instrument(validation):
    people = validation.people
    shown = [item for item in validation.photos["violin"] if any(p.score > 0.6 for p in people.get(item.file, []))]
    one = copy.copy(validation)
    one.photos = {**{name: [] for name in validation.class_of}, "violin": shown, "background": []}
    config = MixConfig(sounds=1, mosaic=0, no_object=0, full_view=1.0, decoy=0, passers_by=0)

    def owners(told: bool) -> np.ndarray:
        mixer = SceneMixer(one, replace(config, heads=told), 0)
        return np.concatenate([mixer[index]["view_owner"] for index in range(6)])

    assert (owners(False) == 0).all()  # the whole picture is the violin
    told = owners(True)
    heads = told == PASTED
    assert heads.any(axis=(1, 2)).mean() > 0.5  # of some the head is cut off, or too small for a patch
    assert heads[:, : heads.shape[1] // 2].sum() > heads[:, heads.shape[1] // 2 :].sum()
    assert (told == IGNORE).any() and (told == 0).any()
