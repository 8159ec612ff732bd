"""Fewer moments than come, evenly."""

from __future__ import annotations

import numpy as np
import pytest

from avssl_ros.rhythm import Rhythm


def taken(rate: float, times) -> list[float]:
    rhythm = Rhythm(rate)
    return [float(time) for time in times if rhythm.is_due(time)]


@pytest.mark.parametrize("comes, rate, wanted", [(15, 10, 10), (30, 10, 10), (25, 20, 20), (10, 10, 10), (5, 10, 5)])
def test_as_many_are_taken_as_are_wanted_or_come(comes, rate, wanted):
    times = np.round(np.arange(20 * comes) / comes, 3)  # as stamps are rounded
    assert len(taken(rate, times)) == pytest.approx(20 * wanted, abs=1)


def test_a_moment_late_by_less_than_a_period_does_not_shift_those_after_it():
    assert taken(10, [0.0, 0.15, 0.2, 0.25, 0.3]) == [0.0, 0.15, 0.2, 0.3]


def test_after_a_gap_and_where_the_clock_goes_back_it_starts_anew():
    assert taken(10, [0.0, 0.05, 7.03, 7.08, 7.13, 2.0, 2.05, 2.1]) == [0.0, 7.03, 7.13, 2.0, 2.1]
