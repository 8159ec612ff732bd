"""The map of others' objectives shows where picture and sound are alike, also where nothing is alike in sign."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from avssl_ros import Localizer  # noqa: E402
from benchmarks.objectives import DENSE_AV, EZ_VSL, NEGATIVES, Similarity, draw_curve, print_summary  # noqa: E402

pytestmark = pytest.mark.train


class OneBrightPatch:
    """Encoders that find everything unlike the sound, and the middle of the second view least unlike."""

    dimensions = 4

    def visual(self, views):
        seen = np.tile(np.float32([-0.5, 0.5, 0, 0]), (len(views), views.shape[1] // 16, views.shape[2] // 16, 1))
        seen[1, seen.shape[1] // 2, seen.shape[2] // 2] = [-0.1, 0.7, 0, 0]
        return seen

    def audio(self, log_mel):
        return np.tile(np.float32([1, 0, 0, 0]), (1, 8, 13, 1))


@pytest.mark.parametrize("name", [EZ_VSL, DENSE_AV])
def test_the_least_unlike_patch_is_answered_and_never_what_no_view_sees(name):
    shipped = Localizer()
    localizer = SimpleNamespace(cut=shipped.cut, encoders=OneBrightPatch())
    scene = SimpleNamespace(image=np.zeros((320, 640, 3), np.uint8), sound=np.ones(64000, np.float32) / 10)
    (answer,) = Similarity(name, localizer)(scene, 1)
    assert np.degrees(answer.azimuth) == pytest.approx(90, abs=6) and abs(np.degrees(answer.elevation)) < 6


def test_the_last_table_and_the_curve_are_of_the_rows_that_were_measured(capsys, tmp_path):
    rows = {name: {"f_20": f, "f_20_95": [f - 0.05, f + 0.04]}
            for name, f in (("chance", 0.1), ("1/8 of data", 0.4), ("ours", 0.7))}  # fmt: skip
    report = {"steps": 300, "tasks": {"1 of 4 visible": rows, "2 of 4 visible": rows, "3 of 4 visible": rows},
              "false_alarms": {"ours": dict.fromkeys(NEGATIVES, 0.25)}}  # fmt: skip
    print_summary(report)
    lines = capsys.readouterr().out.splitlines()
    assert "ours" in lines[-1] and lines[-1].count("70% [65%, 74%]") == 3 and lines[-1].count("25%") == len(NEGATIVES)
    assert "chance" in lines[-3] and lines[-3].count("-") == len(NEGATIVES)
    draw_curve(report, tmp_path / "learning.png")
    assert cv2.imread(str(tmp_path / "learning.png")).std() > 10
