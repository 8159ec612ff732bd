"""The README's figures are drawn of what the models say, from files alone."""

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from avssl_ros.overlay import PALETTE  # noqa: E402
from avssl_ros.paths import demo_scene  # noqa: E402
from training.figures import FiguresConfig, cluster_colours, frame_at, main, sound_until  # noqa: E402

pytestmark = pytest.mark.train


def test_each_large_cluster_has_a_colour_of_its_own_and_shut_patches_are_black():
    member = np.repeat(np.arange(-1, len(PALETTE) + 2), np.r_[5, np.arange(len(PALETTE) + 2) + 1])
    colours = cluster_colours(member)
    assert not colours[member < 0].any()
    coloured = {tuple(colour) for colour in colours[member >= 2].tolist()}
    assert len(coloured) == len(PALETTE) and tuple(colours[member == 0][0]) not in coloured


def test_frames_and_sound_are_of_the_time_asked_for():
    video = demo_scene() / "scene.mp4"
    sound = sound_until(video, 0.9, 2.0)  # nothing sounds before 1.0
    assert len(sound) == round(0.9 * 32000) and np.abs(sound).max() < np.abs(sound_until(video, 3.0, 2.0)).max() / 10
    with pytest.raises(ValueError, match="ends before 99"):
        frame_at(video, 99.0)


def test_both_figures_are_drawn(tmp_path):
    main(FiguresConfig(output=tmp_path))
    for name in ("mosaic.png", "views.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert min(picture.shape[:2]) > 500 and picture.std() > 20
