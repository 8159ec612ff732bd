"""The table of view sizes has a row for each, with a step that is quicker the smaller they are."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import latency, view_sizes  # noqa: E402

pytestmark = pytest.mark.train
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.shared
def test_each_size_is_tried_on_the_same_scenes_and_timed(tmp_path, capsys):
    config = view_sizes.ViewSizesConfig(SHARED, sizes=(64, 352), scenes=2, threads=1, repeats=5, baselines=False,
                                        json=tmp_path / "x.json")  # fmt: skip
    report = view_sizes.main(config)
    assert json.loads(config.json.read_text()) == report and set(report["rows"]) == {"chance", "64", "352"}
    assert report["steps"]["64"]["median_ms"] < report["steps"]["352"]["median_ms"]
    assert all(set(row["sounding"]) == {"1", "2", "3"} for row in report["rows"].values())
    assert set(report["rows"]["64"]["false_alarms"]) == set(view_sizes.NEGATIVES)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["chance", "64", "352"]
    assert lines[-1].split()[-2:] == ["-", "-"]  # the networks of others were left out


def test_how_many_times_as_long_others_take_is_said(capsys):
    sounding = {str(number): {"right_object": 0.5, "f_20": 0.25} for number in view_sizes.SOUNDING}
    step = {"median_ms": 20.0, "p95_ms": 30.0, "not_encoder_share": 0.5}
    size = {"sounding": sounding, "false_alarms": dict.fromkeys(view_sizes.NEGATIVES, 0.1)}
    view_sizes.print_table({"machine": latency.machine(), "scenes": 2, "threads": 1, "rows": {"160": size}, "steps": {
        "160": step, latency.EZVSL: {"median_ms": 70.0}, latency.DENSEAV: {"median_ms": 1000.0}}})  # fmt: skip
    assert capsys.readouterr().out.split()[-2:] == ["3.5", "50.0"]


def test_sizes_that_measure_nothing_are_refused():
    with pytest.raises(ValueError, match="sizes must not be empty"):
        view_sizes.ViewSizesConfig(sizes=())
