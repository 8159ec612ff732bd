"""The overlay: marks where it sounds and only there, wraps at the seam, says what is not in view, and is fast."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from avssl_ros.geometry import angle_between, perspective_pixel_to_direction, pixel_to_direction
from avssl_ros.overlay import draw, draw_directions, source_color
from avssl_ros.scene import Localization, Source, Unseen

WIDTH, HEIGHT = 960, 480
GREY = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
VECTOR = np.zeros(4, np.float32)


def scene_of(*directions_deg, unseen=(), active=True, fov_deg=None) -> Localization:
    """Sources of 8 degrees radius at (azimuth, elevation), with maps that fall off around them."""
    x, y = np.meshgrid(np.arange(128), np.arange(64))
    if fov_deg:
        azimuths, elevations = perspective_pixel_to_direction(x, y, 128, 64, fov_deg)
    else:
        azimuths, elevations = pixel_to_direction(x, y, 128, 64)
    sources = []
    for number, direction in enumerate(np.radians(directions_deg).reshape(-1, 2)):
        away = angle_between(azimuths, elevations, *direction)
        value_map = np.exp(-((away / np.radians(8)) ** 2)).astype(np.float32)
        sources.append(Source(*direction, np.radians(8), 0.8, "dog", 0, VECTOR, value_map, id=number + 1))
    value_map = np.max([source.map for source in sources], axis=0) if sources else np.zeros((64, 128), np.float32)
    return Localization(tuple(sources), value_map, tuple(Unseen(name, 0, 0.7, VECTOR) for name in unseen), active)


def changed(picture, image=GREY) -> np.ndarray:
    """(h, w) bool, below the azimuth scale."""
    different = np.any(picture != image, axis=2)
    different[:30] = False
    return different


def test_marks_lie_where_the_source_is_and_nowhere_else():
    image = GREY.copy()
    picture = draw(image, scene_of((90, 0)))  # left: a quarter of the width
    assert np.array_equal(image, GREY)  # not drawn into
    assert picture.shape == GREY.shape and picture.dtype == np.uint8
    rows, columns = np.nonzero(changed(picture))
    assert 180 < columns.min() < 240 < columns.max() < 480  # the label stands at its right
    assert 180 < rows.min() and rows.max() < 300
    # inferno: red is strongest in the middle of the map
    assert int(picture[HEIGHT // 2, WIDTH // 4, 0]) > int(picture[HEIGHT // 2, WIDTH // 4, 2]) + 60


@pytest.mark.parametrize("azimuth_deg", [174.375, 180.0, -174.375])  # whole pixels from straight ahead
def test_what_crosses_the_right_edge_goes_on_at_the_left(azimuth_deg):
    ahead = draw(GREY, scene_of((0, 0)))
    across = draw(GREY, scene_of((azimuth_deg, 0)))
    back = np.roll(across, round(azimuth_deg / 360 * WIDTH), axis=1)
    middle = np.s_[30:, WIDTH // 2 - 60 : WIDTH // 2 + 22]  # heat, contour and ring; the label differs
    different = np.abs(ahead[middle].astype(int) - back[middle]).max(axis=2) > 12
    assert different.sum() < 400  # lines may lie half a pixel beside; the heat alone covers ten times as many
    label = np.s_[HEIGHT // 2 - 8 : HEIGHT // 2 + 8, WIDTH // 2 + 30 : WIDTH // 2 + 70]
    assert changed(ahead)[label].all() and changed(back)[label].all()


def test_a_label_that_would_be_cut_by_the_right_edge_stands_left_of_its_ring():
    columns = np.nonzero(changed(draw(GREY, scene_of((-160, 0)))))[1]
    assert 700 < columns.min() < 860 < columns.max() < WIDTH - 1


def test_no_line_is_drawn_along_the_seam():
    picture = draw(GREY, scene_of((180, 0)))
    inside = slice(HEIGHT // 2 - 10, HEIGHT // 2 + 10)  # in the middle of the heat, where there is no contour
    step = np.abs(picture[inside, 0].astype(int) - picture[inside, -1])
    assert step.max() < 12


def test_a_source_beside_a_perspective_picture_is_not_drawn_at_its_other_side():
    inside = draw(GREY, scene_of((20, 0), fov_deg=90), "perspective", fov_deg=90)
    columns = np.nonzero(changed(inside))[1]
    expected = WIDTH / 2 * (1 - np.tan(np.radians(20)))
    assert columns.min() < expected < columns.max()
    at_the_edge = draw(GREY, scene_of((-44, 0), fov_deg=90), "perspective", fov_deg=90)
    assert not changed(at_the_edge)[:, : WIDTH // 2].any()
    behind = draw(GREY, scene_of((180, 0), fov_deg=90), "perspective", fov_deg=90)
    assert not changed(behind).any()


def test_the_strip_says_what_is_not_in_view_and_that_nothing_sounds():
    strips = {}
    for name, scene in {
        "unseen": scene_of(unseen=["siren"]),
        "more": scene_of(unseen=["siren", "door bell"]),
        "silence": scene_of(active=False),
        "unknown": scene_of(),
        "seen": scene_of((0, 0)),
    }.items():
        picture = draw(GREY, scene)
        strips[name] = picture[-12:].tobytes()
        assert not changed(picture)[30:150].any()
    assert strips["seen"] == GREY[-12:].tobytes()  # no strip where the picture says it all
    assert len(set(strips.values())) == 5


def test_labels_do_not_cover_each_other():
    one = changed(draw(GREY, scene_of((3, 0)))).sum()
    both = changed(draw(GREY, scene_of((3, 0), (0, 0)))).sum()
    label = 60 * 25  # pixels of a label, at least
    assert both > one + label


def test_colours_follow_the_identity():
    assert source_color(1) == source_color(1) != source_color(2)
    assert len({source_color(identity) for identity in range(7)}) == 7


@pytest.mark.parametrize("size", [(40, 20), (641, 323), (100, 400)])
def test_any_size_is_drawn(size):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    scene = scene_of((10, 80), (170, -85), (-179, 3), unseen=["a very long name of a sound " * 4])
    for projection in ("equirectangular", "perspective"):
        assert draw(image, scene, projection).shape == image.shape


def test_directions_are_drawn_where_the_geometry_says():
    picture = draw_directions(np.zeros((200, 400, 3), np.uint8))
    lines = np.flatnonzero((picture[150:] != 0).any(axis=2).all(axis=0))  # below labels and horizon
    azimuths = np.degrees(pixel_to_direction(lines, 100, 400, 200)[0])
    for degrees in (0, 90, 180, -90):
        assert (np.abs((azimuths - degrees + 180) % 360 - 180) <= 1.5).any(), (degrees, azimuths)
    assert all(min(abs((a - d + 180) % 360 - 180) for d in (0, 90, 180, -90)) <= 2.5 for a in azimuths)


def test_directions_of_an_ordinary_picture_follow_its_field_of_view():
    for fov_deg, count in ((90.0, 7), (40.0, 3)):  # every 15 degrees that it shows
        picture = draw_directions(np.zeros((300, 400, 3), np.uint8), "perspective", fov_deg)
        lines = (picture[200:] != 0).any(axis=2).all(axis=0)
        assert np.count_nonzero(np.diff(np.pad(lines.astype(int), 1)) == 1) == count
    with pytest.raises(ValueError, match="RGB uint8"):
        draw_directions(np.zeros((300, 400), np.uint8))


def test_wrong_input_is_refused():
    for image in (GREY[..., 0], GREY.astype(np.float32), GREY[:0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="RGB uint8"):
            draw(image, scene_of())
    with pytest.raises(ValueError, match="projection"):
        draw(GREY, scene_of(), "fisheye")


def test_fast_enough_for_a_live_node():
    image = np.zeros((960, 1920, 3), np.uint8)
    scene = scene_of((40, 10), (-100, -20), (179, 0), unseen=["siren"])
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # all of the work in this thread, whose own time a busy machine doesn't lengthen
    try:
        draw(image, scene)
        durations = []
        for _ in range(15):
            start = time.thread_time()
            draw(image, scene)
            durations.append(time.thread_time() - start)
    finally:
        cv2.setNumThreads(threads)
    assert min(durations) < 0.03  # 6 to 10 ms on an ordinary core
