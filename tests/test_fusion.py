"""Regions on the sphere: their direction and size, also across the seam."""

import numpy as np
import pytest

from avssl_ros import fusion
from avssl_ros.clustering import Cluster
from avssl_ros.geometry import ViewLayout, angle_between
from avssl_ros.localizer import plane_surface, sphere_surface

SURFACE = sphere_surface(ViewLayout(), 14)
SOUND = Cluster(np.ones(1), np.ones(1), 0.8, 1.0)


def bump(azimuth, elevation, radius_deg=15.0, height=0.9):
    angle = angle_between(SURFACE.azimuth, SURFACE.elevation, azimuth, elevation)
    return (height * np.exp(-0.5 * (angle / np.radians(radius_deg)) ** 2)).astype(np.float32)


@pytest.mark.parametrize("azimuth", [0.0, 1.7, np.pi, -np.pi + 0.05, 3.1])
def test_direction_and_extent_of_one_bump(azimuth):
    (region,) = fusion.find_regions(bump(azimuth, 0.1), SURFACE)
    assert np.degrees(angle_between(region.azimuth, region.elevation, azimuth, 0.1)) < 1.0
    # A Gaussian falls to half its peak at 1.18 standard deviations.
    assert np.degrees(region.extent) == pytest.approx(1.18 * 15.0, abs=1.5)


def test_two_things_in_different_directions_stay_apart_strongest_first():
    regions = fusion.find_regions(bump(0.5, 0.0, height=0.6) + bump(-2.8, 0.0), SURFACE)
    assert [round(region.azimuth, 1) for region in regions] == [-2.8, 0.5]


def test_nothing_seen_gives_no_region():
    assert fusion.find_regions(np.zeros_like(SURFACE.azimuth, dtype=np.float32), SURFACE) == []


def test_a_region_that_leads_is_more_credible():
    bumps = bump(0.5, 0.0, height=0.3) + bump(-2.8, 0.0)
    drawn = fusion.Surface(SURFACE.azimuth, SURFACE.elevation, SURFACE.area, True, lambda values: bumps[None])
    _, regions, rows = fusion.candidates(np.ones((1, 1)), SOUND, drawn)
    model = {"bias": 0.0, "weights": [1.0, 1.0, 0, 0, 0, 0, 0, 0]}
    first, second = (fusion.confidence(row, model) for row in rows)
    assert round(regions[0].azimuth, 1) == -2.8 and 0.0 <= second < 0.5 < first <= 1.0


def test_one_sound_is_not_given_to_two_things():
    shared = fusion.exclusive(np.array([0.94, 0.56]))
    assert shared[0] > 0.8 and shared[1] < 0.1
    assert fusion.exclusive(np.array([0.7])) == pytest.approx([0.7])


def test_an_ordinary_image_keeps_its_shape_and_sides():
    surface = plane_surface(14, 24, 256 / 456, 90.0)
    assert surface.azimuth[0, 0] > 0 > surface.azimuth[0, -1]  # left is positive
    assert surface.azimuth[56, 0] == pytest.approx(np.radians(45), abs=0.02)
    values = np.zeros((1, 14 * 24), np.float32)
    values[0, 7 * 24 + 20] = 1.0
    (region,) = fusion.find_regions(surface.project(values)[0], surface)
    assert region.azimuth < 0
