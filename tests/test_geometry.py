"""Directions are REP-103's, views are py360convert's, and the way back from views to the sphere agrees with both."""

import cv2
import numpy as np
import py360convert
import pytest

from avssl_ros.geometry import (
    ViewLayout,
    angle_between,
    cut_views,
    direction_to_perspective_pixel,
    direction_to_pixel,
    direction_to_vector,
    patch_directions,
    perspective_pixel_to_direction,
    pixel_to_direction,
    sphere_grid,
    vector_to_direction,
    wrap_angle,
)

DIRECTIONS = [(0.0, 0.0), (np.pi / 2, 0.0), (-np.pi / 2, 0.2), (3.1, -0.3), (-3.1, 0.4), (0.8, 0.4)]


def panorama_with_dot(azimuth, elevation, width=1280, radius=14):
    image = np.zeros((width // 2, width, 3), np.uint8)
    x, y = direction_to_pixel(azimuth, elevation, width, width // 2)
    for shift in (-width, 0, width):  # a dot on the seam shows at both edges
        cv2.circle(image, (int(round(float(x))) + shift, int(round(float(y)))), radius, (255, 255, 255), -1)
    return image


def test_left_is_positive_and_lies_at_a_quarter_of_the_width():
    x, _ = direction_to_pixel(np.pi / 2, 0.0, 1000, 500)
    assert x == pytest.approx(249.5)
    assert np.allclose(direction_to_vector(np.pi / 2, 0.0), [0, 1, 0], atol=1e-12)
    assert np.allclose(direction_to_vector(0.0, np.pi / 2), [0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("azimuth, elevation", DIRECTIONS)
def test_directions_survive_pixels_and_vectors(azimuth, elevation):
    back = pixel_to_direction(*direction_to_pixel(azimuth, elevation, 640, 320), 640, 320)
    assert np.allclose(back, (azimuth, elevation))
    assert np.allclose(vector_to_direction(3.0 * direction_to_vector(azimuth, elevation)), (azimuth, elevation))


def test_angle_between_is_exact_when_small_and_across_the_seam():
    assert angle_between(np.pi - 1e-7, 0, -np.pi + 1e-7, 0) == pytest.approx(2e-7, rel=1e-4)
    assert wrap_angle(np.pi) == -np.pi and wrap_angle(3 * np.pi / 2) == pytest.approx(-np.pi / 2)


def test_perspective_pixels_go_both_ways_and_nothing_is_behind():
    azimuth, elevation = perspective_pixel_to_direction(100.0, 50.0, 640, 360, 90.0)
    assert azimuth > 0 and elevation > 0  # left of and above the centre
    assert np.allclose(direction_to_perspective_pixel(azimuth, elevation, 640, 360, 90.0), (100.0, 50.0))
    assert np.all(np.isnan(direction_to_perspective_pixel(np.pi, 0.0, 640, 360, 90.0)))


@pytest.mark.parametrize("azimuth_deg", [0.0, 90.0, 180.0, 270.0, 37.0])
def test_perspective_views_are_those_of_py360convert(azimuth_deg):
    noise = np.random.default_rng(0).integers(0, 256, (160, 320, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2, borderType=cv2.BORDER_WRAP)
    view = cut_views(image, ViewLayout((azimuth_deg,), 12.0, 100.0, 80.0, "perspective"), (64, 96))[0]
    reference = py360convert.e2p(image, (100.0, 80.0), -azimuth_deg, 12.0, (64, 96))
    assert np.abs(view.astype(int) - reference.astype(int)).max() <= 2


@pytest.mark.parametrize("azimuth, elevation", DIRECTIONS)
@pytest.mark.parametrize("tilt", [0.0, 15.0])
@pytest.mark.parametrize("projection, height", [("perspective", 224), ("cylindrical", 320)])
def test_a_dot_comes_back_from_the_views_where_it_was(azimuth, elevation, tilt, projection, height):
    layout = ViewLayout(elevation_deg=tilt, vertical_fov_deg=86.0, projection=projection)
    shape, rows = (height, 288), height // 16
    assert layout.view_shape(288) == shape
    views = cut_views(panorama_with_dot(azimuth, elevation), layout, shape)[..., 0].astype(np.float32)
    patches = views.reshape(4, rows, 16, 18, 16).mean(axis=(2, 4))
    directions = direction_to_vector(*patch_directions(layout, shape, 16))
    centre = vector_to_direction((directions * patches[..., None]).reshape(-1, 3).sum(axis=0))
    assert np.degrees(angle_between(*centre, azimuth, elevation)) < 4.0
    on_sphere = sphere_grid(layout, (rows, 18), 256).project(patches.reshape(1, -1))[0]
    cells = direction_to_vector(*pixel_to_direction(*np.meshgrid(np.arange(256), np.arange(128)), 256, 128))
    centre = vector_to_direction((cells * on_sphere[..., None]).reshape(-1, 3).sum(axis=0))
    assert np.degrees(angle_between(*centre, azimuth, elevation)) < 4.0


def test_a_cylindrical_view_keeps_upright_lines_and_is_as_fine_at_its_edge_as_in_its_middle():
    azimuth, elevation = patch_directions(ViewLayout((0.0,), 0.0, 100.0, 86.0, "cylindrical"), (352, 320), 16)
    assert np.allclose(azimuth, azimuth[:, :1])  # a column is one azimuth
    assert np.allclose(np.diff(azimuth[0, 0]), azimuth[0, 0, 1] - azimuth[0, 0, 0])
    assert np.allclose(elevation, elevation[..., :1])  # and a row one elevation
    square = np.diff(azimuth[0, 0])[0], np.diff(elevation[0, :, 0])[10]
    assert abs(square[0]) == pytest.approx(abs(square[1]), rel=0.04)


def test_overlapping_views_are_blended_not_doubled():
    grid = sphere_grid(ViewLayout(), (14, 18), 128)
    ones = grid.project(np.ones((1, 4 * 14 * 18), np.float32))[0]
    assert np.allclose(ones[grid.seen], 1.0, atol=1e-5)
    assert not grid.seen[0].any() and grid.seen[32].all()  # straight up no view looks; the horizon is covered all round


@pytest.mark.parametrize(
    "arguments",
    [{"azimuths_deg": ()}, {"fov_deg": 10.0}, {"vertical_fov_deg": 170.0}, {"elevation_deg": 91.0},
     {"projection": "fisheye"}],  # fmt: skip
)
def test_impossible_layouts_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        ViewLayout(**arguments)
