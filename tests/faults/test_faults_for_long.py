"""The soak of benchmarks/soak.py, short: the shipped models on the demo scene, one real fault after the other."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

pytestmark = pytest.mark.ros

SOAK = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"
GOOD = {
    "seconds": 180.0, "memory_slope_mb_per_h": 900.0, "memory_growth_mb": 3.0, "unaccounted": 0, "failures": 0,
    "answered": 900, "late_recoveries": [], "exit_status": 0, "exit_seconds": 0.5,
}  # fmt: skip


MINUTES, EVERY_SECONDS = 3, 20


@pytest.mark.timeout(450)
def test_the_node_outlives_random_faults(tmp_path):
    report = tmp_path / "soak.json"
    command = [sys.executable, SOAK, "--minutes", MINUTES, "--every", EVERY_SECONDS, "--json", report,
               "--logs", tmp_path]  # fmt: skip
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=400)
    log = (tmp_path / "localizer_node.log").read_text(errors="replace")
    assert run.returncode == 0, run.stdout + run.stderr + log[-2000:]
    figures = json.loads(report.read_text())
    assert sum(figures["faults"].values()) >= 60 * MINUTES // EVERY_SECONDS and figures["answers_seen"] > 0
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, None),
        ({"seconds": 3600.0}, "MB/h"),
        ({"memory_growth_mb": 30.0}, "grew by 30"),
        ({"unaccounted": 3}, "3 images are neither"),
        ({"unaccounted": -1}, "-1 images are neither"),
        ({"failures": 1}, "1 steps failed"),
        ({"answered": 0}, "no image was answered"),
        ({"late_recoveries": ["player_ends 4.0 s"]}, "player_ends 4.0 s"),
        ({"exit_status": 1}, "status 1"),
        ({"exit_seconds": 2.5}, "after 2.5 s"),
    ],
)
def test_each_bar_of_the_soak_can_fail(change, said):
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    found = soak.failures({**GOOD, **change})
    assert (found == []) if said is None else (len(found) == 1 and said in found[0])
