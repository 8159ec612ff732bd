"""The confidence of a model folder: the fit, which moments of a timeline are right, and the whole on real items."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from avssl_ros.clustering import NEUTRAL_DECISION
from avssl_ros.paths import shipped_models
from training import calibrate
from training.clip_collection import concept_called
from training.data import read_concepts
from training.scenes import MASK_SHAPE, PlacedObject, Scene, SceneGenerator, Sounding, Timeline

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
DOG = PlacedObject("dog", 0.5, 0.0, 0.6, True, np.zeros(MASK_SHAPE, bool))
CAT = PlacedObject("cat", -1.5, 0.0, 0.6, True, np.zeros(MASK_SHAPE, bool))


def test_the_fit_finds_the_odds_that_rounds_were_drawn_from():
    rng, true = np.random.default_rng(0), {"bias": -1.0, "weights": [2.0, -0.5]}
    groups = []
    for _ in range(4000):
        features = rng.normal(size=(3, 2))
        odds = np.exp(true["bias"] + features @ true["weights"])
        chosen = rng.choice(4, p=np.append(odds, 1.0) / (1.0 + odds.sum()))
        groups.append((features, np.arange(3) == chosen))
    found = calibrate.fit(groups, ridge=0.0)
    assert found["bias"] == pytest.approx(-1.0, abs=0.15)
    assert found["weights"] == pytest.approx(true["weights"], abs=0.15)


class Hears:
    """A localizer that hears something in every moment and keeps how much sound it was given, and where it looked."""

    window_seconds, prototypes, made_by = 2.0, None, {}
    encoders = SimpleNamespace(visual=lambda views: np.zeros((1, 4)), dimensions=4)

    def __init__(self):
        self.lengths, self.closer = [], []

    def cut(self, image, projection, closer):
        self.closer.append(closer)
        return None, None

    def hear(self, sound, recent):
        self.lengths.append(len(sound))
        return [SimpleNamespace()]


def candidate(azimuth: float):
    region = SimpleNamespace(azimuth=azimuth, elevation=0.0)
    return SimpleNamespace(region=region, features=np.array([azimuth]))


def test_moments_are_right_where_what_sounds_now_is(monkeypatch):
    monkeypatch.setattr(calibrate.fusion, "explain", lambda *rest: iter([(None, [candidate(0.5), candidate(-1.5)])]))
    soundings = (Sounding(0, "dog", 1.0, 4.0), Sounding(1, "cat", 5.0, 8.0), Sounding(None, "bell", 10.0, 12.0))
    timeline = Timeline(None, np.zeros(17 * 32000, np.float32), (DOG, CAT), soundings)
    localizer = Hears()
    rounds = calibrate.moments(localizer, timeline)
    rights = np.array([right for _, right in rounds])
    assert max(localizer.lengths) == 2 * 32000
    assert localizer.closer == [(), (22.5,)]  # at the likeliest candidate, which stands at 29 degrees, once for all
    # Each sounds 3 s; at either end a moment is sure once half of the last 0.5 s are of it.
    assert rights[:, 0].sum() == pytest.approx(31, abs=2) and rights[:, 1].sum() == pytest.approx(31, abs=2)
    assert not rights.all(axis=1).any()
    assert len(rounds) < 165  # what begins or ends within the last moment is left out
    assert (~rights.any(axis=1)).sum() > 60  # silence of both, and what is not in view


class Names:
    """A localizer that hears one sound, of kind 1, in every scene."""

    def __init__(self, *labels: str):
        self.labels = labels

    def hear(self, sound):
        return [SimpleNamespace(concepts=np.eye(len(self.labels))[1], gate=0.8)]

    def look_closer(self, image, clusters, visual, surface):
        return visual, surface


def rights(monkeypatch, labels: tuple[str, ...], sounding: str, offscreen: str | None = None) -> list[bool]:
    """Which names of sounds of a scene are right."""
    monkeypatch.setattr(calibrate, "_look", lambda *rest: (None, None))
    monkeypatch.setattr(calibrate, "candidates", lambda *rest: [])
    objects = () if offscreen else (PlacedObject(sounding, 0.5, 0.0, 0.6, True, np.zeros(MASK_SHAPE, bool)),)
    _, names = calibrate.whole_window(Names(*labels), Scene(None, None, objects, offscreen))
    return [bool(right) for _, (right,) in names]


def test_a_name_is_right_by_what_it_says_not_by_its_number_in_the_list(monkeypatch):
    kinds = ("violin", "dog barking 2")  # as training/discover.py calls what it finds; concept 1 is another one
    assert rights(monkeypatch, kinds, "dog") == [True] and rights(monkeypatch, kinds, "violin") == [False]
    assert rights(monkeypatch, kinds, "", offscreen="dog") == [True]
    assert rights(monkeypatch, ("violin", "cat"), "dog") == [False]
    many = (*(f"sound {n}" for n in range(100)),)
    assert rights(monkeypatch, ("violin", "sound 2"), "dog") == rights(monkeypatch, many, "dog") == []
    assert rights(monkeypatch, kinds, "video a7x") == []  # of an unlabelled clip: who knows
    shipped = json.loads((shipped_models() / "manifest.json").read_text())["labels"]
    assert [concept_called(label) for label in shipped] == [concept.name for concept in read_concepts()]


def test_where_no_name_is_known_to_be_right_what_is_not_in_view_keeps_its_neutral_confidence(capsys):
    features = np.array([[0.9, 0.8]])
    wrong = [(features, np.array([False]))] * 3
    assert calibrate.fit_names(wrong) == calibrate.fit_names([]) == NEUTRAL_DECISION["unseen"]
    assert "3 names of sounds" in capsys.readouterr().out
    rows = [*wrong, (features, np.array([True]))]
    assert calibrate.fit_names(rows) == calibrate.fit(rows)


@pytest.mark.shared
def test_streams_get_a_confidence_of_their_own(tmp_path):
    shutil.copytree(shipped_models(), tmp_path / "models")
    config = calibrate.CalibrateConfig(models=tmp_path / "models", data=SHARED, scenes=12, timelines=1,
                                       least_sounds=1)  # fmt: skip
    decision = calibrate.calibrate(config)
    assert decision == json.loads((tmp_path / "models/manifest.json").read_text())["decision"]
    assert decision["stream"] != decision["source"]


@pytest.mark.shared
def test_too_few_concepts_for_timelines_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(SceneGenerator, "has_timelines", False)
    shutil.copytree(shipped_models(), tmp_path / "models")
    config = calibrate.CalibrateConfig(models=tmp_path / "models", data=SHARED, scenes=12)
    decision = calibrate.calibrate(config)
    assert decision["stream"] == decision["source"] and "no timelines" in capsys.readouterr().out
