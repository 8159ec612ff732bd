"""The stream benchmark counts what its columns say, and timelines sound as their schedule says."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros import Source, features  # noqa: E402
from benchmarks import streams  # noqa: E402
from training.clip_collection import ClipsConfig, open_collection  # noqa: E402
from training.data import read_concepts  # noqa: E402
from training.scenes import SCHEDULE, PlacedObject, SceneGenerator, Sounding, Timeline  # noqa: E402

pytestmark = pytest.mark.train
SHARED = Path(__file__).resolve().parents[3] / "shared"
STEP = 0.1


def source(azimuth_deg: float, label: str = "dog") -> Source:
    nothing = np.zeros((1, 1), np.float32)
    return Source(float(np.radians(azimuth_deg)), 0.0, 0.2, 0.9, label, 0, np.zeros(3, np.float32), nothing)


def timeline() -> Timeline:
    """A dog ahead sounds from 1 to 3 s, something out of view from 6 to 8 s; a cat at 90 degrees is silent."""
    mask = np.zeros((1, 1), bool)
    objects = (PlacedObject("dog", 0.0, 0.0, 0.5, True, mask), PlacedObject("cat", np.pi / 2, 0.0, 0.5, False, mask))
    soundings = Sounding(0, "dog", 1.0, 3.0), Sounding(None, "cow", 6.0, 8.0)
    return Timeline(np.zeros((2, 4, 3), np.uint8), np.zeros(320000, np.float32), objects, soundings)


def told(*parts: tuple[float, float, Source]) -> streams.Published:
    """What is published every STEP seconds for 10 s: each part from .. to."""
    times = np.round(np.arange(STEP, 10, STEP), 3)
    return [(t, [s for start, end, s in parts if start - 1e-9 <= t <= end + 1e-9]) for t in times]


def judged(*parts) -> dict:
    return streams.judge(timeline(), told(*parts), STEP)


def test_delays_are_from_the_start_and_from_the_end():
    found = judged((1.4, 3.5, source(5)))
    assert found["heard"] == found["soundings"] == 1 and found["false"] == 0
    assert found["onset"] == [pytest.approx(0.4)] and found["offset"] == [pytest.approx(0.5)]
    assert found["covered"] / found["sounded"] == pytest.approx(17 / 21)
    assert all(found["named"])


def test_a_blip_answers_nothing_and_what_stays_on_is_false():
    assert judged((1.4, 1.6, source(0)))["heard"] == 0
    assert judged((1.4, 4.8, source(0)))["false"] == 1  # 0.8 s longer than late


def test_false_sources_are_counted_once_each():
    found = judged((1.0, 2.0, source(90)), (1.5, 1.6, source(180)), (6.5, 7.5, source(-120)))
    assert (found["heard"], found["false"], found["false_unseen"]) == (0, 2, 1)


def test_the_summary_counts_over_all_timelines():
    found = streams.summary([judged((1.4, 3.5, source(5))), judged((1.0, 2.0, source(90)))])
    assert found["heard"] == 0.5 and found["onset_seconds"] == pytest.approx(0.4)
    assert found["false_a_minute"] == pytest.approx(1 / (2 * streams.TIMELINE_SECONDS / 60))


@pytest.mark.shared
def test_a_timeline_sounds_as_its_schedule_says():
    collection = open_collection(SHARED / "data", ClipsConfig(), "validation", read_concepts())
    made = SceneGenerator(collection, 0, least_sounds=1).timeline(0)
    collection.close()
    assert [(s.placed, s.start, s.end) for s in made.soundings] == list(SCHEDULE)
    assert all(s.placed is None or made.objects[s.placed].concept == s.concept for s in made.soundings)
    assert made.soundings[-1].concept not in [placed.concept for placed in made.objects]
    at = [features.loudest_block_db(made.sound[int(a * 32000):int(b * 32000)]) for a, b in ((0, 1), (12.1, 12.9))]
    assert max(at) < -45
    assert all(features.loudest_block_db(made.sound[int(s.start * 32000):int(s.end * 32000)]) > -30
               for s in made.soundings)  # fmt: skip
