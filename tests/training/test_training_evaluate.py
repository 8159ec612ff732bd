"""The metrics are what their definitions say, and each row of the table answers what it claims to."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros import Localizer, features  # noqa: E402
from training import evaluate  # noqa: E402
from training.data import read_concepts, read_items  # noqa: E402
from training.evaluate import (  # noqa: E402
    GRID,
    Answer,
    Centre,
    EvaluateConfig,
    Saliency,
    SightOnly,
    WholeImage,
    consensus_iou,
    disc,
    interval,
    judge,
    summary,
)
from training.mixing import Collection  # noqa: E402
from training.scenes import MASK_SHAPE, PlacedObject, Scene  # noqa: E402

pytestmark = pytest.mark.train
SHARED = Path(__file__).resolve().parents[3] / "shared"


def placed(concept: str, azimuth_deg: float, sounds: bool) -> PlacedObject:
    azimuth = float(np.radians(azimuth_deg))
    return PlacedObject(concept, azimuth, 0.0, 0.5, sounds, disc(azimuth, 0.0).mask)


def scene(*objects: PlacedObject) -> Scene:
    return Scene(np.zeros((640, 1280, 3), np.uint8), np.zeros(64000, np.float32), objects)


def named(azimuth_deg: float, label: str | None = None) -> Answer:
    return replace(disc(np.radians(azimuth_deg), 0.0), label=label)


def test_an_answer_on_the_object_scores_in_every_column_and_one_on_the_silent_object_in_none():
    one = scene(placed("dog", 170, True), placed("cat", 40, False))
    right = judge(one, [named(-178, "dog")], {"dog": "dog"})  # across the seam: 12 degrees off
    assert (right["hits"], right["right"], right["label"]) == (1, True, True)
    assert np.degrees(right["error"]) == pytest.approx(12, abs=0.1) and 0.3 < right["ciou"] < 0.8
    wrong = judge(one, [named(45, "dog")], {"dog": "dog"})
    assert (wrong["hits"], wrong["right"], wrong["ciou"]) == (0, False, 0.0) and "label" not in wrong
    none = judge(one, [], {})
    assert (none["hits"], none["right"], none["error"]) == (0, False, np.pi)


def test_names_are_compared_as_concepts_and_what_is_none_does_not_count():
    """A model of clips without labels calls its kinds by the words of the clips' list, or by numbers."""
    one = scene(placed("dog", 0, True), placed("cat", 90, False))
    said = {name: judge(one, [named(0, name)], {"dog": "dog"}).get("label")
            for name in ("dog barking", "dog barking 2", "cat meowing", "sound 7")}
    assert said == {"dog barking": True, "dog barking 2": True, "cat meowing": False, "sound 7": None}
    assert "label" not in judge(scene(placed("video a7x", 0, True)), [named(0, "dog")], {"dog": "dog"})


def test_answers_and_objects_are_matched_one_to_one():
    two = scene(placed("dog", 0, True), placed("cat", 90, True))
    assert judge(two, [named(2), named(5)], {})["hits"] == 1  # both on the dog
    assert judge(two, [named(2), named(85)], {})["hits"] == 2


def test_the_summary_counts_over_all_scenes():
    one = scene(placed("dog", 0, True), placed("cat", 90, False))
    table = summary([judge(one, [named(0, "dog"), named(90, "cat")], {"dog": "dog"}), judge(one, [], {})])
    assert (table["recall_20"], table["precision_20"], table["f_20"]) == (0.5, 0.5, 0.5)
    assert (table["right_object"], table["answered"], table["number_right"], table["label_right"]) == (0.5, 0.5, 0.0, 1)
    assert table["f_20_95"] == [0.0, 0.6667]  # both scenes the empty one, both the other
    assert table["median_error_deg"] == pytest.approx(90) and 0 < table["ciou_auc"] < 1


def test_ciou_is_the_share_of_common_solid_angle():
    mask = np.zeros(MASK_SHAPE, bool)
    mask[:, :128] = True
    assert consensus_iou([mask], [mask]) == 1.0 and consensus_iou([mask], [~mask]) == 0.0
    assert consensus_iou([np.ones(MASK_SHAPE, bool)], [mask]) == pytest.approx(0.5)
    equator = np.abs(GRID[1]) < np.radians(30)  # a third of the rows, half of the sphere
    assert consensus_iou([equator], [np.ones(MASK_SHAPE, bool)]) == pytest.approx(0.5, abs=0.02)


def test_the_interval_holds_the_mean_and_narrows_with_the_number_of_scenes():
    few, many = interval([0, 1] * 10), interval([0, 1] * 1000)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_the_rows_that_do_not_listen_answer_without_the_sound():
    one = scene(placed("dog", 100, True))
    one.image[:] = np.random.default_rng(0).integers(90, 110, one.image.shape)
    rows, columns = np.nonzero(np.abs(np.arange(640)[:, None] - 320) + np.abs(np.arange(1280)[None] - 284) < 40)
    one.image[rows, columns] = [255, 40, 40]  # azimuth 100 degrees is column 640 - 100 / 360 * 1280 = 284
    (salient,) = Saliency()(one, 1)
    assert abs(np.degrees(salient.azimuth) - 100) < 10
    assert Centre()(one, 1)[0].azimuth == 0.0 and WholeImage()(one, 1)[0].mask.all()
    localizer = Localizer()
    (first,) = SightOnly(localizer)(one, 1)[:1] or [None]
    loud = Scene(one.image, np.random.default_rng(1).normal(0, 0.2, 64000).astype(np.float32), one.objects)
    (again,) = SightOnly(localizer)(loud, 1)[:1] or [None]
    assert (first is None and again is None) or first.azimuth == again.azimuth


def test_missing_data_is_said_clearly(tmp_path):
    with pytest.raises(FileNotFoundError, match="--clips.shards"):
        evaluate.evaluate(EvaluateConfig(data=tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="--data, --clips.shards"):
        evaluate.evaluate(EvaluateConfig(data=None))


@pytest.mark.shared
def test_the_tables_of_a_small_evaluation(tmp_path, capsys):
    config = EvaluateConfig(Path("models"), SHARED / "data", split="validation", scenes=3, least_sounds=1,
                            json=tmp_path / "figures.json")  # fmt: skip
    report = evaluate.evaluate(config, negatives=("silence",))
    assert json.loads(config.json.read_text()) == json.loads(json.dumps(report))
    rows = report["positive"]["1 of 4 visible objects sounding"]
    assert set(rows) == {"chance", "centre", "whole image", "saliency", "sight only", "sound only", "avssl_ros"}
    assert report["negative"]["silence"]["false_alarms"] == 0.0
    assert "cIoU@.5" in capsys.readouterr().out


@pytest.mark.shared
def test_the_label_bridge_hears_and_sees_a_dog():
    from benchmarks.label_bridge import LabelBridge

    concepts = [concept.name for concept in read_concepts()]
    items = [item for item in read_items(split="train") if item.concept == "dog"]
    photo = next(item for item in items if item.source == "images")
    sounds = [item for item in items if item.kind == "sound"][:5]
    collection = Collection([photo, *sounds], SHARED / "data", read_concepts())
    bridge = LabelBridge(Localizer(), SHARED / "weights")
    heard = [concepts[int(bridge.hear(collection.sound(item)[:64000]).argmax())] for item in sounds]
    assert heard.count("dog") >= 3
    view = np.zeros((1, 448, 448, 3), np.uint8)
    picture = collection.photo(photo)[:224, :224]
    view[0, 100 : 100 + picture.shape[0], 200 : 200 + picture.shape[1]] = picture
    seen = bridge.see(view).reshape(14, 14, -1)[..., concepts.index("dog")]
    row, column = np.unravel_index(seen.argmax(), seen.shape)
    assert 68 <= row * 32 <= 324 and 168 <= column * 32 <= 424  # cells that touch the picture
    assert not bridge.hear(np.zeros(64000, np.float32)).any() and features.SAMPLE_RATE == 32000
