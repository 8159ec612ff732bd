"""The benchmark's other material: cut-outs keep their outline, and a real frame goes with the sound of its moment."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import wavfile

pytest.importorskip("torch")

from benchmarks.material import CutOuts, RealVideo  # noqa: E402
from training.clips import encode_mp4  # noqa: E402
from training.data import BACKGROUND, Item, read_concepts  # noqa: E402
from training.mixing import Collection  # noqa: E402
from training.scenes import SceneGenerator  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture
def base(tmp_path):
    """One grey panorama and no background noise."""
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((64, 128, 3), 128, np.uint8))
    item = Item("panorama", "grey.png", BACKGROUND, (), "test", "grey", "here", "CC0")
    return Collection([item], tmp_path, read_concepts())


def clip(path: Path, grey: int, frequency: float) -> None:
    """Two seconds of one grey and one tone."""
    tone = 0.3 * np.sin(2 * np.pi * frequency * np.arange(2 * 32000) / 32000)
    pictures = (np.full((96, 160, 3), grey, np.uint8) for _ in range(30))
    path.write_bytes(encode_mp4(pictures, tone.astype(np.float32), 32000))


def test_a_real_frame_goes_with_the_sound_of_the_same_clip(base, tmp_path):
    rows = [("a.mp4", "man speaking", 40, 300.0), ("b.mp4", "man speaking", 200, 1200.0),
            ("c.mp4", "small bird", 120, 4000.0), ("d.mp4", "drums and man speaking", 90, 700.0)]
    with open(tmp_path / "index.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "what_sounds", "projection", "seconds"])
        for name, what, grey, frequency in rows:
            clip(tmp_path / name, grey, frequency)
            table.writerow([name, what, "perspective", 2.0])
    video = RealVideo(base, tmp_path)
    assert {concept: len(clips) for concept, clips in video.clips.items()} == {"person": 2, "bird": 1}
    heard = set()
    for seed in range(8):
        moment = video.scene((seed,))
        (person,) = moment.photos["person"]
        grey, sound = moment.photo(person).mean(), moment.sound(person)
        tone = np.abs(np.fft.rfft(sound)).argmax() * 32000 / len(sound)
        assert (abs(grey - 40) < 10 and abs(tone - 300) < 5) or (abs(grey - 200) < 10 and abs(tone - 1200) < 5)
        assert moment.photo(person).shape == (96, 128, 3)
        heard.add(round(tone))
    assert len(heard) == 2
    generator = SceneGenerator(video, 0, visible=1, least_photos=1, least_sounds=1, by_recordings=True)
    drawn = [generator.scene(index).objects[0].concept for index in range(60)]
    assert 30 < drawn.count("person") < 50  # two clips of three


def test_a_cut_out_is_pasted_along_its_outline(base, tmp_path, monkeypatch):
    disc = np.zeros((80, 80, 4), np.uint8)
    cv2.circle(disc, (40, 40), 30, (0, 0, 255, 255), -1)
    tone = (8000 * np.sin(np.arange(32000) / 10)).astype(np.int16)
    for name in ("dog", "cat", "cow"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), disc)
        wavfile.write(tmp_path / f"{name}.wav", 32000, tone)
    monkeypatch.setattr("benchmarks.material.debian_folder", lambda *_: tmp_path)
    monkeypatch.setattr("training.corpus.STAMP_CONCEPTS", tuple((f"*{n}.*", n) for n in ("dog", "cat", "cow")))
    scene = SceneGenerator(CutOuts(base, tmp_path), 0, visible=1, least_photos=1, least_sounds=1).scene(0)
    is_red = (scene.image[..., 0] > 200) & (scene.image[..., 1] < 60)
    (placed,) = scene.objects
    covered = cv2.resize(is_red.astype(np.uint8), placed.mask.shape[::-1], interpolation=cv2.INTER_AREA) > 0
    assert placed.sounds and covered.any() and (covered == placed.mask).mean() > 0.99
    # The disc covers pi / 4 * (60 / 80)^2 of the picture's square, and no rectangle is left around it.
    turned = np.roll(placed.mask, round(placed.azimuth / (2 * np.pi) * placed.mask.shape[1]), axis=1)
    rows, columns = np.nonzero(turned)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert 0.65 < len(rows) / box < 0.9
    assert np.abs(scene.sound).max() > 0.01
