"""The demo scene is what its description says, the demo's verdict is right, and the demo succeeds as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from avssl_ros.audio_input import read_audio
from avssl_ros.geometry import direction_to_pixel
from avssl_ros.paths import demo_scene
from avssl_ros.video_input import VideoFile

TRUTH = json.loads((demo_scene() / "scene.json").read_text())
VIDEO = demo_scene() / TRUTH["video"]


def line(time: float, azimuth_deg: float, elevation_deg: float = -8.0, identity: int = 1) -> dict:
    source = {"id": identity, "label": "thing", "azimuth_deg": azimuth_deg, "elevation_deg": elevation_deg}
    return {"time": time, "active": True, "sources": [source], "unseen": []}


def all_found() -> list[dict]:
    return [
        line((thing["from"] + thing["to"]) / 2, thing["azimuth_deg"], thing["elevation_deg"], number)
        for number, thing in enumerate(TRUTH["sounding"])
    ]


def wrong_findings(lines: list[dict]) -> list[str]:
    from avssl_ros.ros.demo import judge

    return [finding.text for finding in judge(TRUTH, lines) if finding.right is False]


def test_scene_is_a_small_spherical_video_as_long_as_described():
    video = VideoFile(VIDEO)
    assert video.projection_reason == "its spherical metadata say so"
    assert video.duration == pytest.approx(TRUTH["seconds"], abs=0.1)
    assert VIDEO.stat().st_size < 3e6


def test_scene_sounds_when_described_and_is_silent_between():
    samples, rate = read_audio(VIDEO)
    spans = sorted((thing["from"], thing["to"]) for thing in TRUTH["sounding"] + TRUTH["unseen"])
    quiet_from = 0.0
    for start, end in spans:
        assert np.abs(samples[round(start * rate) : round(end * rate)]).max() > 0.3
        gap = samples[round((quiet_from + 0.1) * rate) : round((start - 0.1) * rate)]
        assert len(gap) > 0.5 * rate and np.abs(gap).max() < 0.01
        quiet_from = end


def test_things_stand_where_described():
    """What stands in front of the meadow differs from the meadow 25 degrees beside it, at the same height."""
    _, image = next(iter(VideoFile(VIDEO)))
    height, width = image.shape[:2]

    def patch(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
        x, y = direction_to_pixel(np.radians(azimuth_deg), np.radians(elevation_deg), width, height)
        rows, columns = np.mgrid[int(y) - 9 : int(y) + 10, int(x) - 9 : int(x) + 10]
        return image[rows, columns % width].astype(float).mean(axis=(0, 1))

    for thing in TRUTH["sounding"] + TRUTH["silent"]:
        azimuth, elevation = thing["azimuth_deg"], thing["elevation_deg"]
        beside = [patch(azimuth + side, elevation) for side in (-30, 30)]
        assert min(np.abs(patch(azimuth, elevation) - meadow).max() for meadow in beside) > 15, thing["name"]


@pytest.mark.ros
def test_verdict_is_clean_when_every_sounding_thing_was_found():
    assert wrong_findings(all_found()) == []


@pytest.mark.ros
def test_verdict_names_a_thing_that_was_found_16_degrees_off():
    lines = all_found()
    lines[0]["sources"][0]["azimuth_deg"] += 16.5
    assert [TRUTH["sounding"][0]["name"] in text and "not found" in text for text in wrong_findings(lines)] == [True]


@pytest.mark.ros
def test_verdict_names_a_thing_that_was_missed():
    (text,) = wrong_findings(all_found()[:-1])
    assert text.startswith(TRUTH["sounding"][-1]["name"]) and "not found" in text


@pytest.mark.ros
@pytest.mark.parametrize("thing", TRUTH["silent"], ids=lambda thing: thing["name"])
def test_verdict_names_a_silent_thing_that_was_reported(thing):
    (text,) = wrong_findings([*all_found(), line(2.0, thing["azimuth_deg"] + 10.0, identity=9)])
    assert text.startswith(f"{thing['name']} is silent")


@pytest.mark.ros
def test_verdict_names_a_sounding_thing_that_was_reported_out_of_its_time():
    first, second = TRUTH["sounding"][:2]
    (text,) = wrong_findings([*all_found(), line(second["to"], first["azimuth_deg"], identity=9)])
    assert text.startswith(f"{first['name']} is silent")


@pytest.mark.ros
def test_demo_finds_every_source_and_writes_its_files(tmp_path):
    command = [sys.executable, "-m", "avssl_ros.cli", "demo", "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [json.loads(text) for text in (tmp_path / "out/sources.jsonl").read_text().splitlines()]
    assert {"time", "active", "sources", "unseen"} <= set(lines[0])
    for thing in TRUTH["sounding"]:
        assert any(label in result.stdout for label in thing["labels"]), result.stdout
    assert VideoFile(tmp_path / "out/overlay.mp4").duration == pytest.approx(TRUTH["seconds"], abs=1.0)
    for name in ("timeline.png", "map.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.ros
def test_demo_says_so_when_the_localizer_cannot_start(tmp_path):
    command = [
        sys.executable,
        "-m",
        "avssl_ros.cli",
        "demo",
        "--output",
        str(tmp_path / "out"),
        "--models",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert result.returncode == 1
    assert "localizer_node ended with status 1" in result.stderr and str(tmp_path) in result.stderr
