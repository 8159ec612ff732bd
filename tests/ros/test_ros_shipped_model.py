"""The node with the shipped models, over DDS: the short form of benchmarks/node_dds.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from ros_graph import LOCALIZER, log_of

pytestmark = pytest.mark.ros

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "node_dds.py"


def test_large_images_are_answered_each_with_its_own_stamp(tmp_path):
    report = tmp_path / "node_dds.json"
    command = [sys.executable, str(BENCHMARK), "--seconds", "6", "--json", str(report)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr
    (figures,) = json.loads(report.read_text())["runs"]
    # How many there are depends on what else this machine does; on an idle one all 60 are accepted.
    assert figures["images_published"] >= 20 and figures["images_accepted"] >= 10, figures
    assert figures["answered_of_accepted"] >= 0.95, figures
    assert figures["answers_with_a_foreign_stamp"] == 0, figures
    assert figures["maps"] >= 0.95 * figures["answers"], figures
    # The demo scene begins with a sheep that bleats, so there is something to mark.
    assert figures["sources_published"] > 0 and figures["marker_messages"] > 0, figures
    assert figures["bad_images"] == figures["bad_sound"] == 0, figures


@pytest.fixture
def node_dds():
    spec = importlib.util.spec_from_file_location("node_dds", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_end_of_sources_is_known_though_its_stamp_lies_after_the_next_images(node_dds):
    """Else it counts above as an answer with a foreign stamp."""
    first, end, next_image, foreign = (10, 0), (11, 50_000_000), (10, 900_000_000), (11, 100_000_000)
    recorder = SimpleNamespace(sources=dict.fromkeys((first, end, next_image, foreign), 0.0), empty={end, foreign},
                               images=dict.fromkeys((first, next_image), 0.0))  # fmt: skip
    assert node_dds.endings(recorder) == {end}


def test_an_image_that_the_benchmark_itself_lost_is_the_cameras(node_dds):
    first = (1_795_000_000, 950_000_000)
    assert node_dds.is_of_the_camera((1_795_000_003, 150_000_001), first, 10.0)
    assert node_dds.is_of_the_camera((1_795_000_001, 16_666_666), first, 15.0)
    assert not node_dds.is_of_the_camera((1_795_000_003, 151_000_000), first, 10.0)
    assert not node_dds.is_of_the_camera((1_795_000_000, 850_000_000), first, 10.0)


@pytest.mark.parametrize(
    "parameters, said",
    [
        ({"models": "/no/such/folder"}, "/no/such/folder"),
        ({"providers": ["NoSuchExecutionProvider"]}, "NoSuchExecutionProvider"),
        ({"view_azimuths_deg": [0.0, 400.0]}, "[-360, 360]"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(processes, parameters, said):
    process = processes.start(LOCALIZER, audio_source="topic", **parameters)
    assert process.wait(timeout=60) == 1
    last_line = log_of(process).strip().splitlines()[-1]
    assert last_line.startswith("cannot start:") and said in last_line
