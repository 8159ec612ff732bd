"""Fixtures of the fault tests, and the table that `make faults` writes from what they measured."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ros"))

from ros_fixtures import domain, peer, processes  # noqa: E402, F401
from test_audio_input import pulse  # noqa: E402, F401  a virtual microphone

TABLE = "AVSSL_FAULTS_TABLE"  # environment variable: where to write the table, if all went well
_rows: list[tuple[str, str, str, str]] = []

HEAD = """# Faults

What the node `localizer` publishes when a sensor fails, how long it takes to notice, and to publish a source again once
the sensor is back. Written by `make faults`, which injects each fault for real (`tests/faults/`): messages over DDS, a
PulseAudio microphone, signals to real processes. `sensor_timeout` is 1 s, its default; times are seconds of one run on
a machine with two cores and other work. The tests fail where a source is published from stale data, where an onset has
no offset, or where recovery takes more than 3 s.

| fault | published | noticed after | back after |
|---|---|---|---|
"""


@pytest.fixture
def row():
    """Adds a row to the table: fault, what is published, seconds to notice and to recover (None: there is nothing)."""

    def add(fault: str, published: str, noticed: float | None, back: float | None) -> None:
        _rows.append((fault, published, *("" if t is None else f"{t:.1f} s" for t in (noticed, back))))

    return add


def pytest_sessionfinish(exitstatus: int) -> None:
    if exitstatus == 0 and (path := os.environ.get(TABLE)):
        Path(path).write_text(HEAD + "".join(f"| {' | '.join(row)} |\n" for row in _rows))
