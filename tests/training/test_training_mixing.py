"""Mixed scenes carry their truth exactly, and splits keep items apart."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros import features  # noqa: E402
from avssl_ros.geometry import angle_between, pixel_to_direction  # noqa: E402
from training.data import read_concepts, read_items, read_more_items  # noqa: E402
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
