"""Regions on the sphere: their direction and size, also across the seam."""

import numpy as np
import pytest

from avssl_ros import fusion
from avssl_ros.clustering import Cluster
from avssl_ros.geometry import ViewLayout, angle_between, patch_directions, pixel_to_direction
from avssl_ros.localizer import plane_surface, sphere_surface

LAYOUT = ViewLayout(vertical_fov_deg=86.0)
SURFACE = sphere_surface(LAYOUT, (14, 18))


def bump(azimuth, elevation, radius_deg=15.0, height=0.9):
    angle = angle_between(SURFACE.azimuth, SURFACE.elevation, azimuth, elevation)
    return (height * np.exp(-0.5 * (angle / np.radians(radius_deg)) ** 2)).astype(np.float32)


@pytest.mark.parametrize("azimuth", [0.0, 1.7, np.pi, -np.pi + 0.05, 3.1])
def test_direction_and_extent_of_one_bump(azimuth):
    (region,) = fusion.find_regions(bump(azimuth, 0.1), SURFACE)
    assert np.degrees(angle_between(region.azimuth, region.elevation, azimuth, 0.1)) < 1.0
    # A Gaussian falls to half its peak at 1.18 standard deviations.
    assert np.degrees(region.extent) == pytest.approx(1.18 * 15.0, abs=1.5)


def test_a_region_is_marked_in_the_whole_map_though_only_rows_that_views_reach_are_searched():
    (region,) = fusion.find_regions(bump(3.1, 0.1), SURFACE)
    assert region.mask.shape == SURFACE.shape == (128, 256) and SURFACE.azimuth.shape[0] < 64
    marked = np.isin(np.arange(SURFACE.azimuth.size), region.cells).reshape(SURFACE.azimuth.shape)
    assert np.array_equal(region.mask, SURFACE.whole(marked))
    _, elevation = pixel_to_direction(0.0, np.flatnonzero(region.mask.any(axis=1)), 256, 128)
    assert np.degrees(elevation).mean() == pytest.approx(np.degrees(region.elevation), abs=1.0)


def test_two_things_in_different_directions_stay_apart_strongest_first():
    regions = fusion.find_regions(bump(0.5, 0.0, height=0.6) + bump(-2.8, 0.0), SURFACE)
    assert [round(region.azimuth, 1) for region in regions] == [-2.8, 0.5]


def test_a_shoulder_is_no_region_of_its_own():
    body = bump(1.0, 0.1, radius_deg=8.0) + bump(1.0, -0.25, radius_deg=9.0, height=0.5)
    (region,) = fusion.find_regions(body, SURFACE)
    assert region.peak == pytest.approx(body.max()) and region.azimuth == pytest.approx(1.0, abs=0.02)


def test_nothing_seen_gives_no_region():
    assert fusion.find_regions(np.zeros_like(SURFACE.azimuth, dtype=np.float32), SURFACE) == []


def patch_values(azimuth, concept, gate=0.9):
    """Embeddings (4 * 14 * 18, 3) of a thing of one concept, about 15 degrees wide, at an azimuth on the horizon."""
    seen = angle_between(*(a.ravel() for a in patch_directions(LAYOUT, LAYOUT.view_shape(288), 16)), azimuth, 0.0)
    return np.outer(gate * np.exp(-0.5 * (seen / np.radians(8)) ** 2), np.eye(3)[concept])


def sound(*concepts, share=1.0):
    return Cluster(np.eye(3)[0], np.array(concepts), 0.8, share)


def explained(visual, *clusters):
    return [found for _, found in fusion.explain(visual, clusters, np.eye(3, dtype=np.float32), SURFACE)]


def test_what_is_in_view_decides_between_two_concepts():
    found = explained(patch_values(1.0, 1) + patch_values(-2.0, 2), sound(0.5, 0.4, 0.05))[0]
    assert (found[0].concept, round(found[0].region.azimuth, 1)) == (1, 1.0)


def test_nothing_alike_in_view_gives_no_candidate():
    assert explained(patch_values(1.0, 1), sound(0.9, 0.0, 0.0)) == []


@pytest.mark.parametrize(
    "clusters", [[sound(0.6, 0.3, 0.0)], [sound(0.9, 0.0, 0.0, share=0.7), sound(0.0, 0.9, 0.0, share=0.3)]]
)
def test_what_is_heard_faintly_is_found_after_what_is_loud(clusters):
    first, second = explained(patch_values(1.0, 0) + patch_values(-2.0, 1), *clusters)[:2]
    assert (first[0].concept, round(first[0].region.azimuth, 1)) == (0, 1.0)
    assert (second[0].concept, round(second[0].region.azimuth, 1)) == (1, -2.0)
    assert first[0].sound is clusters[0] and second[0].sound is clusters[-1]
    assert first[0].features.shape == second[0].features.shape == (16,)


def test_what_is_heard_as_one_concept_is_found_where_another_that_makes_it_is_seen():
    visual, crowd = patch_values(1.0, 1), sound(0.9, 0.0, 0.0)
    assert explained(visual, crowd) == []
    ((_, found),) = fusion.explain(visual, [crowd], np.eye(3, dtype=np.float32), SURFACE, made_by={0: [1]})
    assert (found[0].concept, round(found[0].region.azimuth, 1)) == (0, 1.0)


def test_one_thing_that_two_concepts_fit_is_one_source():
    first, *later = explained(patch_values(1.0, 0) + 0.8 * patch_values(1.0, 1), sound(0.6, 0.3, 0.0))
    assert first[0].concept == 0 and all(found[0].features[2] < -1 for found in later)  # what is left was explained


def test_a_region_that_leads_is_more_credible():
    found = explained(patch_values(0.5, 0, gate=0.3) + patch_values(-2.8, 0), sound(0.9, 0.05, 0.0))[0]
    model = {"bias": 0.0, "weights": [1.0, 1.0] + 14 * [0.0]}
    first, second = fusion.confidences([candidate.features for candidate in found], model)
    assert round(found[0].region.azimuth, 1) == -2.8 and 0.0 <= second < 0.3 < first <= 1.0


def test_one_sound_is_not_given_to_two_things():
    model = {"bias": 0.0, "weights": [1.0]}
    shared = fusion.confidences([[2.75], [0.24]], model)  # each alone: 0.94 and 0.56
    assert shared[0] > 0.8 and shared[1] < 0.1
    assert fusion.confidences([[0.85]], model) == pytest.approx([0.7], abs=0.01)


def test_an_ordinary_image_keeps_its_shape_and_sides():
    surface = plane_surface(14, 24, 256 / 456, 90.0)
    assert surface.azimuth[0, 0] > 0 > surface.azimuth[0, -1]  # left is positive
    assert surface.azimuth[56, 0] == pytest.approx(np.radians(45), abs=0.02)
    values = np.zeros((1, 14 * 24), np.float32)
    values[0, 7 * 24 + 20] = 1.0
    (region,) = fusion.find_regions(surface.project(values)[0], surface)
    assert region.azimuth < 0
