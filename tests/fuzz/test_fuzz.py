"""Mutated inputs at every place where data come in: only the documented errors, no hang, no memory.

A few thousand inputs in `make test`; `make fuzz` runs 100,000 and prints how many each entry point took, the slowest,
and the memory. A crash of a native library ends the process that is fed, which the test notices.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import memory
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

import entry_points

pytestmark = pytest.mark.ros

DEFAULT_INPUTS, ALL_INPUTS = 2500, 100_000
HANG_SECONDS = 1.0  # of the processor: what else the machine does is no hang of ours
STILL_SECONDS = 10.0  # and of any clock
MEMORY_FACTOR = 1.5
CHUNK = 1000  # inputs of one run of hypothesis, which remembers all of them


@dataclass
class Tally:
    """What came of the inputs of one entry point."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds
    took: float = 0.0  # seconds, all inputs together and making them
    memory: int = 0  # bytes at most
    failure: str = ""  # what was raised, and where the input lies


def feed(entry: entry_points.EntryPoint, value) -> tuple[bool, float]:
    """Whether the input was refused, and the processor's seconds that took."""
    begin, start = time.process_time(), time.monotonic()
    try:
        entry.use(value)
        refused = False
    except entry.errors:
        refused = True
    assert time.monotonic() - start < STILL_SECONDS, f"{entry.name} stood still"
    return refused, time.process_time() - begin


def fuzz(entry: entry_points.EntryPoint, count: int, memory_of_one: float = float("inf")) -> Tally:
    """Feeds `count` inputs, up to the first that fails: the smallest like it is kept for whoever mends that.

    One input may make the memory grow by `memory_of_one` bytes.
    """
    tally, kept = Tally(), Path(tempfile.gettempdir()) / f"fuzz-{entry.name.replace(' ', '-').replace('/', '-')}.txt"

    def once(value) -> None:
        held = memory.forget_peak()
        try:
            refused, seconds = feed(entry, value)
            assert seconds < HANG_SECONDS, f"{entry.name}: {seconds:.1f} s"
            assert memory.peak() - held < memory_of_one, f"{entry.name}: {memory.peak() - held >> 20} MB for one input"
        except Exception:
            kept.write_text(repr(value))
            raise
        tally.memory = max(tally.memory, memory.peak())
        tally.inputs += 1
        tally.refused += refused
        tally.slowest = max(tally.slowest, seconds)

    begin = time.perf_counter()
    for number, first in enumerate(range(0, count, CHUNK)):
        how = settings(max_examples=min(CHUNK, count - first), database=None, deadline=None,
                       phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))  # fmt: skip
        try:
            seed(number)(how(given(entry.inputs)(once)))()
        except Exception as error:
            error.__notes__ = []  # the input, which may be long
            tally.failure = "".join(traceback.format_exception(error, limit=-4)) + f"the input: {kept}"
            break
    tally.took = time.perf_counter() - begin
    return tally


def run(folder, inputs: int) -> tuple[dict[str, Tally], int, int]:
    """Tallies by entry point, and the memory before and at most, in bytes."""
    entries = entry_points.entry_points(folder)
    for entry in entries:
        for value in entry.valid:
            entry.use(value)
    normal = memory.forget_peak()
    tallies = {}
    for entry in entries:
        tallies[entry.name] = fuzz(entry, round(inputs * entry.share), (MEMORY_FACTOR - 1) * normal)
    most = max(tally.memory for tally in tallies.values())
    return tallies, normal, most


def run_apart(folder: Path, inputs: int) -> tuple[dict[str, Tally], int, int]:
    """`run` in a process of its own: what other tests hold in memory or leave there is none of it.

    Raises BrokenProcessPool where a native library crashes.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, folder, inputs).result()


def report(tallies: dict[str, Tally], normal: int, most: int) -> str:
    lines = [f"{'entry point':24}{'inputs':>8}{'refused':>9}{'slowest':>10}{'took':>8}{'memory':>9}"]
    lines += [f"{name:24}{tally.inputs:8d}{tally.refused / tally.inputs:9.0%}{1000 * tally.slowest:7.0f} ms"
              f"{tally.took:6.1f} s{tally.memory >> 20:6d} MB"
              for name, tally in tallies.items()]  # fmt: skip
    total = sum(tally.inputs for tally in tallies.values())
    lines.append(f"{'together':24}{total:8d}    memory {normal >> 20} MB before, at most {most >> 20} MB")
    return "\n".join(lines)


def judge(tallies: dict[str, Tally], normal: int, most: int) -> None:
    failures = [f"{name}: {tally.failure}" for name, tally in tallies.items() if tally.failure]
    assert not failures, "\n\n".join(failures)
    assert most < MEMORY_FACTOR * normal, report(tallies, normal, most)
    for name, tally in tallies.items():
        assert 0.05 < tally.refused / tally.inputs <= 1.0, f"{name}: the mutations hardly spoil anything"
        assert tally.refused < tally.inputs, f"{name}: nothing gets as far as the end"


def test_mutated_inputs_are_used_or_refused_at_every_entry_point(tmp_path):
    results = run_apart(tmp_path, DEFAULT_INPUTS)
    print(report(*results))
    judge(*results)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_000_mutated_inputs(tmp_path, capsys):
    results = run_apart(tmp_path, ALL_INPUTS)
    with capsys.disabled():
        print("\n" + report(*results))
    judge(*results)
    assert sum(tally.inputs for tally in results[0].values()) >= ALL_INPUTS


def test_a_hang_and_an_undocumented_error_are_noticed(tmp_path):
    entry = entry_points.entry_points(tmp_path)[0]
    def spin(_):
        until = time.process_time() + 1.1
        while time.process_time() < until:
            pass

    broken = {"spins": (spin, "AssertionError: spins: 1."), "raises": (lambda _: {}["key"], "KeyError: 'key'")}
    for name, (use, error) in broken.items():
        tally = fuzz(entry_points.EntryPoint(name, entry.inputs.map(lambda _: 0), use, [], 1.0), 1)
        assert error in tally.failure and not tally.inputs
        with pytest.raises(AssertionError, match=error):
            judge({name: tally}, 1, 1)
