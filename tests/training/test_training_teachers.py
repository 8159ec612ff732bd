"""People in panoramas: where the detector's boxes lie on the sphere, and what training makes of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros.geometry import ViewLayout, cut_views  # noqa: E402
from training import mixing, teachers  # noqa: E402
from training.crop_people import CropConfig, show_held_out  # noqa: E402
from training.crop_people import main as crop_people  # noqa: E402
from training.data import (  # noqa: E402
    Item,
    Person,
    people_mask,
    read_concepts,
    read_items,
    read_more_items,
    read_people,
)
from training.losses import BACKGROUND, IGNORE  # noqa: E402
from training.mixing import Collection, MixConfig, SceneMixer  # noqa: E402
from training.scenes import SceneGenerator  # noqa: E402
from training.teachers import PersonDetector, people_in_panorama, people_in_photo  # noqa: E402

pytestmark = pytest.mark.train
SHARED = Path(__file__).resolve().parents[3] / "shared"
NO_PASTING = MixConfig(no_object=1.0, full_view=0.0, mosaic=0.0, decoy=0.0, sounds=1, passers_by=1.0)


class BrightSpot:
    """A detector that knows where the view is bright."""

    def __call__(self, view: np.ndarray):
        rows, columns = np.nonzero(view[..., 0] > 200)
        if not len(rows):
            return np.zeros((0, 4)), np.zeros(0)
        return np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]), np.array([0.9])


@pytest.mark.parametrize("left", [300, 700, 1260])  # the last one across the seam
def test_a_box_of_a_view_is_where_it_is_in_the_panorama(left):
    panorama = np.zeros((640, 1280, 3), np.uint8)
    panorama[280:360, np.arange(left, left + 40) % 1280] = 255
    (person,) = people_in_panorama(BrightSpot(), panorama)
    assert [person.left * 1280, person.right * 1280] == pytest.approx([left, left + 40], abs=4)
    assert [person.top * 640, person.bottom * 640] == pytest.approx([280, 360], abs=5)
    mask = people_mask([person], 640, 1280) > 0
    bright = panorama[..., 0] > 0
    assert (mask & bright).sum() / (mask | bright).sum() > 0.8


def test_the_surer_of_two_boxes_decides():
    mask = people_mask([Person(0.1, 0.4, 0.3, 0.6, 0.9), Person(0.2, 0.4, 0.4, 0.6, 0.3)], 100, 200)
    assert set(np.unique(mask)) == {0, round(0.3 * 255), round(0.9 * 255)}
    assert (mask[40:60, 40:60] == round(0.9 * 255)).all()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A collection whose only panorama has somebody for certain and somebody perhaps, at known places."""
    cv2.imwrite(str(tmp_path / "room.png"), np.full((640, 1280, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "dog.png"), np.full((64, 64, 3), 200, np.uint8))
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 16000).astype(np.float32)
    monkeypatch.setattr(mixing, "read_audio", lambda path: (noise, 32000))
    people = [Person(0.05, 0.35, 0.15, 0.65, 0.9), Person(0.55, 0.35, 0.65, 0.65, 0.3)]
    monkeypatch.setattr(mixing, "read_people", lambda: {"room.png": people})
    items = [Item("panorama", "room.png", "background", (), "train", "room", "", ""),
             Item("photo", "dog.png", "dog", (), "train", "dog", "", ""),
             Item("sound", "dog.wav", "dog", (), "train", "dog", "", "")]  # fmt: skip
    return Collection(items, tmp_path, read_concepts())


def test_people_of_the_background_are_people_and_doubtful_ones_nothing(place, monkeypatch):
    monkeypatch.setattr(mixing.SceneMixer, "_plain_photo", lambda self, rng: np.full((64, 64, 3), 90, np.uint8))
    mixer, person, sure, doubtful, empty = SceneMixer(place, NO_PASTING, 0), place.class_of["person"], 0, 0, 0
    for index in range(6):
        scene = mixer[index]
        for owner, concepts in zip(scene["view_owner"], scene["view_concept"]):
            owned = {int(concepts[k]) for k in np.unique(owner) if k >= 0}
            assert owned <= {person}
            sure, doubtful, empty = sure + (owner >= 0).sum(), doubtful + (owner == IGNORE).sum(), empty + (
                owner == BACKGROUND).sum()  # fmt: skip
    assert sure > 50 and doubtful > 50 and empty > 10 * sure


def test_who_is_behind_a_pasted_picture_is_not_there(place, monkeypatch):
    monkeypatch.setattr(mixing.SceneMixer, "_plain_photo", lambda self, rng: np.full((64, 64, 3), 90, np.uint8))

    def hide(self, rng, view, coverage, photo, full):
        photo, alpha = cv2.resize(photo, (mixing.SIZE, mixing.SIZE)), np.ones((mixing.SIZE, mixing.SIZE), np.float32)
        mixing.paste(view, coverage, photo, alpha, 0, 0)

    monkeypatch.setattr(mixing.SceneMixer, "_place", hide)
    scene = SceneMixer(place, MixConfig(no_object=1.0, full_view=0.0, mosaic=0.0, decoy=1.0, sounds=1), 0)[0]
    assert (scene["view_owner"] == BACKGROUND).all()


def test_where_people_are_heard_the_panorama_has_none(tmp_path, monkeypatch):
    """Those would be as right an answer as the person in the picture that was set into it."""
    for name, grey in (("street", 50), ("room", 150)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((640, 1280, 3), grey, np.uint8))
    monkeypatch.setattr(mixing, "read_audio", lambda path: (np.full(16000, 0.1, np.float32), 32000))
    monkeypatch.setattr(mixing, "read_people", lambda: {"street.png": [Person(0.2, 0.4, 0.3, 0.6, 0.9)]})
    items = [Item("panorama", f"{name}.png", "background", (), "train", name, "", "") for name in ("street", "room")]
    names = ("person", "crowd", "dog", "cat", "bell", "cow", "horse")
    for name in names:
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((64, 64, 3), 250, np.uint8))
        items += [Item("photo", f"{name}.png", name, (), "train", name, "", "")]
        items += [Item("sound", f"{name}.wav", name, (), "train", name, "", "")]
    generator = SceneGenerator(Collection(items, tmp_path, read_concepts()), 0, least_photos=1, least_sounds=1)
    seen = {True: set(), False: set()}
    for index in range(24):
        scene = generator.scene(index)
        seen[scene.sounding[0].concept in ("person", "crowd")].add(int(np.median(scene.image)))
        away = generator.negative(index, "offscreen sound")
        if away.offscreen in ("person", "crowd"):
            assert np.median(away.image) == 150 and not {"person", "crowd"} & {o.concept for o in away.objects}
    assert seen == {True: {150}, False: {50, 150}}


@pytest.mark.shared
def test_the_real_detector_finds_who_is_in_the_list():
    detector = PersonDetector(SHARED / "weights" / "yolox_nano.onnx")
    listed = {file: people for file, people in read_people().items() if file.startswith("panoramas/")}
    file = max(listed, key=lambda name: sum(person.score > 0.8 for person in listed[name]))
    panorama = cv2.cvtColor(cv2.imread(str(SHARED / "data" / file)), cv2.COLOR_BGR2RGB)
    found = people_in_panorama(detector, panorama)
    sure = [person for person in listed[file] if person.score > 0.8]
    assert len(sure) > 3
    for person in sure:
        assert any(abs(other.left - person.left) < 0.01 and abs(other.top - person.top) < 0.01 for other in found)


@pytest.mark.shared
def test_the_real_detector_finds_a_person_in_an_ordinary_picture():
    detector, listed = PersonDetector(SHARED / "weights" / "yolox_nano.onnx"), read_people()
    item = next(item for item in read_items("photo") if item.concept == "person" and item.file in listed)
    picture = cv2.cvtColor(cv2.imread(str(SHARED / "data" / item.file)), cv2.COLOR_BGR2RGB)
    found, (wanted, *_) = people_in_photo(detector, picture), listed[item.file]
    assert vars(found[0]) == pytest.approx(vars(wanted), abs=0.01)
    wide = np.hstack([np.full_like(picture, 114), picture])  # the same person on the right
    moved = people_in_photo(detector, wide)
    assert moved and all(person.left > 0.45 for person in moved)


def test_the_list_is_of_the_pictures_there_are():
    pictures = {item.file: item for item in read_items() if item.kind != "sound"}
    people = read_people()
    assert people.keys() <= pictures.keys()
    assert sum(pictures[file].kind == "panorama" for file in people) > 40
    photos = [item for item in pictures.values() if item.kind == "photo" and item.concept == "person"]
    assert sum(item.file in people for item in photos) > 0.9 * len(photos)
    assert all(0 <= p.left < 1 and p.left < p.right and p.top < p.bottom <= 1 and p.score >= teachers.LEAST_SCORE
               for found in people.values() for p in found)  # fmt: skip
    assert cut_views(np.zeros((640, 1280, 4), np.uint8), ViewLayout(), (32, 32)).shape == (4, 32, 32, 4)


@pytest.fixture
def held_out(tmp_path, monkeypatch):
    """A data folder with one test photograph, which the table says is here/somewhere/named.jpg."""
    rng = np.random.default_rng(4)
    data, photo = tmp_path / "data", cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (160, 120))
    (data / "photos/person").mkdir(parents=True)
    cv2.imwrite(str(data / "photos/person/t.jpg"), photo)
    (data / "photos/index.csv").write_text("file,source_repo,source_path\nperson/t.jpg,here,somewhere/named.jpg\n")
    item = Item("photo", "photos/person/t.jpg", "person", (), "test", "t", "here", "")
    monkeypatch.setattr("training.crop_people.read_items", lambda kind: [item])
    return data, photo


def test_people_are_cut_out_of_labelled_pictures(tmp_path, held_out):
    data, photo = held_out
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    picture = np.zeros((400, 600, 3), np.uint8)
    picture[100:300, 200:300] = 255
    text = f"0 {250 / 600} 0.5 {100 / 600} 0.5\n16 0.5 0.5 0.5 0.5\n0 0.1 0.1 0.02 0.02\n"
    copy = cv2.resize(photo, (600, 400))
    for name, pixels in (("a", picture), ("named", picture), ("copy", copy), ("other", picture)):
        cv2.imwrite(str(tmp_path / f"images/train/{name}.jpg"), pixels)
        (tmp_path / f"labels/train/{name}.txt").write_text(text)
    config = CropConfig(tmp_path / "images", tmp_path / "out", tmp_path / "labels", only=("a", "named", "copy"),
                        data=data, margins=(0.12, 0.5), held_out="of no set", source="here")  # fmt: skip
    assert crop_people(config) == 1  # neither the dog nor who is too small, nor the test photograph by name or looks
    (item,) = read_more_items(tmp_path / "out")
    crop = cv2.imread(item.file)
    assert (item.kind, item.concept, item.source, item.group) == ("photo", "person", "here", "a.jpg")
    assert crop.shape[:2] == (248, 124) and 0.55 < (crop > 128).mean() < 0.75
    assert crop_people(replace(config, only=())) == 2
    wide = cv2.imread(str(tmp_path / "out/other_0.jpg"))
    assert wide.shape[:2] == (400, 200)  # the second, of the second margin
    (tmp_path / "labels/train/a.txt").write_text("0 0.1 0.1 0.2 0.2 0.3 0.3\n")
    with pytest.raises(ValueError, match="wanted class, x, y, width, height"):
        crop_people(config)
    with pytest.raises(FileNotFoundError, match="label of its name"):
        crop_people(replace(config, labels=tmp_path / "out"))


@pytest.mark.shared
def test_people_are_cut_out_of_pictures_without_labels(tmp_path):
    item = next(item for item in read_items("photo") if item.concept == "person" and item.split == "train"
                and any(p.score > 0.8 and p.area > 0.3 for p in read_people().get(item.file, [])))  # fmt: skip
    (tmp_path / "images").mkdir()
    shutil.copy(SHARED / "data" / item.file, tmp_path / "images" / "someone.jpg")
    shutil.copy(SHARED / "data" / next(i.file for i in read_items("photo") if i.split == "test"), tmp_path / "images")
    config = CropConfig(tmp_path / "images", tmp_path / "out", data=SHARED / "data", weights=SHARED / "weights",
                        held_out="")  # fmt: skip
    assert crop_people(config) >= 1
    assert {found.group for found in read_more_items(tmp_path / "out")} == {"someone.jpg"}


def test_pictures_that_a_held_out_photograph_was_cut_out_of_are_found(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (640, 480)) for _ in range(2)]
    paths = [tmp_path / "first.jpg", tmp_path / "second.jpg"]
    for path, picture in zip(paths, pictures):
        cv2.imwrite(str(path), picture)
    held_out, plain = tmp_path / "held_out.jpg", tmp_path / "plain.jpg"
    cv2.imwrite(str(held_out), cv2.resize(pictures[1][100:400, 200:500], (200, 200), interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(plain), np.full((200, 200, 3), 90, np.uint8))
    assert show_held_out(paths, [plain, held_out]) == {paths[1]}
    assert show_held_out([*paths, plain], [plain]) == set()
    patch = cv2.resize(rng.integers(0, 255, (6, 6, 3), np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC)
    pictures[0][200:248, 300:348] = patch  # what is there once, and again and again in a photograph, is not the same
    cv2.imwrite(str(paths[0]), pictures[0])
    cv2.imwrite(str(plain), np.tile(patch, (6, 6, 1)))
    assert show_held_out(paths, [plain]) == set()
