"""Directions, view layouts and the maps between an equirectangular image, views cut from it and the sphere.

Conventions (REP-103): x forward, y left, z up; azimuth is the yaw in radians, counter-clockwise, 0 at the centre column
of the equirectangular image and +pi/2 (left) at a quarter of its width; elevation is up. Pixel centres lie at integer
coordinates, so that column (width - 1) / 2 is azimuth 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import cv2
import numpy as np
from py360convert import utils as py360
from scipy import sparse


def wrap_angle(angle):
    """Angle(s) in radians, wrapped into [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def direction_to_vector(azimuth, elevation) -> np.ndarray:
    """Unit vectors (..., 3) x forward, y left, z up, of directions in radians."""
    azimuth, elevation = np.broadcast_arrays(azimuth, elevation)
    flat = np.cos(elevation)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=-1)


def vector_to_direction(vector) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation in radians of vectors (..., 3) of any positive length."""
    x, y, z = np.moveaxis(np.asarray(vector, dtype=float), -1, 0)
    return np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))


def angle_between(azimuth_a, elevation_a, azimuth_b, elevation_b):
    """Great-circle angle in radians between two directions; arrays broadcast."""
    a, b = direction_to_vector(azimuth_a, elevation_a), direction_to_vector(azimuth_b, elevation_b)
    # The arc tangent keeps its precision where the arc cosine of a dot product near 1 has none.
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(a * b, axis=-1))


def pixel_to_direction(x, y, width: int, height: int):
    """Equirectangular pixel coordinates (float, arrays allowed) to azimuth and elevation in radians."""
    azimuth = np.pi - (np.asarray(x) + 0.5) / width * 2 * np.pi
    elevation = np.pi / 2 - (np.asarray(y) + 0.5) / height * np.pi
    return wrap_angle(azimuth), elevation


def direction_to_pixel(azimuth, elevation, width: int, height: int):
    """Directions in radians to equirectangular pixels: x in [-0.5, width - 0.5), y in [-0.5, height - 0.5]."""
    x = (np.pi - wrap_angle(azimuth)) / (2 * np.pi) * width - 0.5
    x = np.where(x >= width - 0.5, x - width, x)
    y = (np.pi / 2 - np.asarray(elevation)) / np.pi * height - 0.5
    return x, y


def perspective_pixel_to_direction(x, y, width: int, height: int, fov_deg: float):
    """Pixels of a pinhole image that looks along azimuth 0 (`fov_deg` wide) to azimuth and elevation in radians."""
    focal = width / 2 / np.tan(np.radians(fov_deg) / 2)
    right = (np.asarray(x) - (width - 1) / 2) / focal
    up = ((height - 1) / 2 - np.asarray(y)) / focal
    right, up = np.broadcast_arrays(right, up)
    return vector_to_direction(np.stack([np.ones_like(right), -right, up], axis=-1))


def direction_to_perspective_pixel(azimuth, elevation, width: int, height: int, fov_deg: float):
    """Directions to pixels of a pinhole image that looks along azimuth 0; NaN for what lies behind the camera."""
    focal = width / 2 / np.tan(np.radians(fov_deg) / 2)
    ahead, left, up = np.moveaxis(direction_to_vector(azimuth, elevation), -1, 0)
    ahead = np.where(ahead > 1e-9, ahead, np.nan)
    return (width - 1) / 2 - focal * left / ahead, (height - 1) / 2 - focal * up / ahead


ViewProjection = Literal["perspective", "cylindrical"]
VIEW_PROJECTIONS = get_args(ViewProjection)


@dataclass(frozen=True)
class ViewLayout:
    """Views cut from the sphere, as data. Defaults overlap by 10 degrees on each side.

    A perspective view 100 degrees wide stretches what stands at its edge to 2.4 times its width, and spends the pixels
    there that its middle lacks. A cylindrical one shows everything near the horizon as a camera that looks straight at
    it would, keeps upright lines straight, and is as fine at its edges as in its middle. Both are measured in
    docs/benchmarks.md.

    Attributes:
        azimuths_deg: azimuth of each view's centre, degrees, counter-clockwise.
        elevation_deg: elevation of all centres, degrees.
        fov_deg: horizontal field of view, degrees, 30..150.
        vertical_fov_deg: vertical field of view, degrees, 30..150. What sounds stands near the horizon: pixels spent
            there resolve more than pixels spent on ceiling and floor.
        projection: one of VIEW_PROJECTIONS.
    """

    azimuths_deg: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0)
    elevation_deg: float = 0.0
    fov_deg: float = 100.0
    vertical_fov_deg: float = 70.0
    projection: ViewProjection = "perspective"

    def __post_init__(self):
        if self.projection not in VIEW_PROJECTIONS:
            raise ValueError(f"view projection must be one of {VIEW_PROJECTIONS}, got {self.projection!r}")
        azimuths = tuple(float(azimuth) for azimuth in self.azimuths_deg)
        if not 1 <= len(azimuths) <= 36 or not np.all(np.isfinite(azimuths)):
            raise ValueError(f"view azimuths must be 1..36 finite degrees, got {self.azimuths_deg!r}")
        for name in ("fov_deg", "vertical_fov_deg"):
            if not 30.0 <= getattr(self, name) <= 150.0:
                raise ValueError(f"view {name} must be 30..150 degrees, got {getattr(self, name)}")
        if not -90.0 <= self.elevation_deg <= 90.0:
            raise ValueError(f"view elevation must be -90..90 degrees, got {self.elevation_deg}")
        object.__setattr__(self, "azimuths_deg", azimuths)

    def __len__(self) -> int:
        return len(self.azimuths_deg)

    @property
    def limits(self) -> tuple[float, float]:
        """Half width and half height of a view's image surface, plane or unrolled, for a focal length of 1."""
        across, up = np.radians([self.fov_deg, self.vertical_fov_deg]) / 2
        return float(across if self.projection == "cylindrical" else np.tan(across)), float(np.tan(up))

    def view_shape(self, size: int, multiple: int = 32) -> tuple[int, int]:
        """(height, width) in pixels of a view `size` wide: square pixels, but for rounding to the `multiple`."""
        across, up = self.limits
        return max(multiple, round(size * up / across / multiple) * multiple), size


@lru_cache(maxsize=16)
def sampling_map(layout: ViewLayout, shape: tuple[int, int], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """cv2.remap maps that cut all views of `layout`, stacked vertically, from an image of `width` x `height`.

    A view has `shape` (height, width). Those of perspective views are py360convert's (`utils.xyzpers`). Computed once
    for each layout and image size.

    Returns:
        Two fixed-point maps for an output of (views * shape[0], shape[1]), for cv2.BORDER_WRAP: columns from width - 1
        to width lie between the last column and the first.
    """
    if layout.projection == "perspective":
        columns, rows = _perspective_samples(layout, shape, width, height)
    else:
        directions = vector_to_direction(_view_vectors(layout, *(np.linspace(-1, 1, size) for size in shape[::-1])))
        columns, rows = direction_to_pixel(*directions, width, height)
    map_x = np.mod(columns, width).reshape(-1, shape[1]).astype(np.float32)
    map_y = np.clip(rows, 0, height - 1).reshape(-1, shape[1]).astype(np.float32)
    return cv2.convertMaps(map_x, map_y, cv2.CV_16SC2)


def _perspective_samples(layout: ViewLayout, shape: tuple[int, int], width: int, height: int):
    """Columns and rows (views, *shape) of the image at which perspective views are sampled."""
    fov = np.radians([layout.fov_deg, layout.vertical_fov_deg])
    # py360convert.e2p takes clockwise degrees and hands their negative to xyzpers, so this is REP-103's sign.
    xyz = [py360.xyzpers(*fov, np.radians(azimuth_deg), np.radians(layout.elevation_deg), shape, 0.0)
           for azimuth_deg in layout.azimuths_deg]  # fmt: skip
    columns, rows = py360.uv2coor(*py360.xyz2uv(np.stack(xyz)), height, width)
    return columns[..., 0], rows[..., 0]


def cut_views(image: np.ndarray, layout: ViewLayout, shape: tuple[int, int], turned_deg: float = 0.0,
              out: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """Views (views, *shape, 3) uint8 of an equirectangular image (H, W, 3) uint8, in one pass.

    Args:
        turned_deg: by how much all views are turned beyond their azimuths, counter-clockwise, to the nearest column.
        out: contiguous array to write them to; None for a new one.
    """
    height, width = image.shape[:2]
    map_1, map_2 = sampling_map(layout, shape, width, height)
    if turned_deg:
        map_1 = map_1.copy()
        map_1[..., 0] = (map_1[..., 0] - round(turned_deg / 360 * width)) % width
    stacked = None if out is None else out.reshape(*map_1.shape[:2], *image.shape[2:])
    views = cv2.remap(image, map_1, map_2, cv2.INTER_LINEAR, stacked, cv2.BORDER_WRAP)
    return views.reshape(len(layout), *shape, *image.shape[2:])


@lru_cache(maxsize=16)
def patch_directions(layout: ViewLayout, shape: tuple[int, int], stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation (views, rows, columns) in radians of the patch centres of all views of `shape`."""
    return vector_to_direction(_view_vectors(layout, *(_patch_centres(size, stride) for size in shape[::-1])))


def _view_vectors(layout: ViewLayout, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Vectors (views, len(y), len(x), 3) to places of the views: x and y from -1 to 1, rightwards and downwards."""
    across, high = layout.limits
    left, up = np.meshgrid(-x * across, -y * high)
    if layout.projection == "cylindrical":
        forward = np.stack([np.cos(left), np.sin(left), up], axis=-1)
    else:
        forward = np.stack([np.ones_like(left), left, up], axis=-1)
    pitch, yaws = np.radians(layout.elevation_deg), np.radians(layout.azimuths_deg)
    tilt = np.array([[np.cos(pitch), 0, -np.sin(pitch)], [0, 1, 0], [np.sin(pitch), 0, np.cos(pitch)]])
    turns = [np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]) for yaw in yaws]
    return np.stack([forward @ (turn @ tilt).T for turn in turns])


def _patch_centres(size: int, stride: int) -> np.ndarray:
    """-1..1 along a view, the first and last pixel centre of which lie on its edge, as xyzpers has it."""
    return 2 * (np.arange(size // stride) * stride + (stride - 1) / 2) / (size - 1) - 1


@dataclass(frozen=True)
class SphereGrid:
    """The way back: patch values of overlapping views blended onto an equirectangular grid.

    Attributes:
        weights: sparse (h * w, views * patches of a view) float32: bilinear weight x the view's blending weight; a row
            sums to 1 where `seen` and to 0 elsewhere.
        seen: (h, w) bool, False where no view looks.
    """

    weights: sparse.csr_array
    seen: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and the columns of all that any view sees; what lies around them is not."""
        return _extent(self.seen.any(axis=1)), _extent(self.seen.any(axis=0))

    def within(self, rows: slice, columns: slice) -> SphereGrid:
        """The part of this grid in some rows and columns, which costs less to project onto."""
        cells = np.arange(self.seen.size).reshape(self.seen.shape)[rows, columns]
        return SphereGrid(self.weights[cells.ravel()], self.seen[rows, columns])

    def project(self, values: np.ndarray) -> np.ndarray:
        """Maps (K, h, w) float32 on the sphere of K patch value arrays (K, views * patches of a view)."""
        maps = self.weights @ np.ascontiguousarray(values.T, dtype=np.float32)
        return np.ascontiguousarray(maps.T).reshape(len(values), *self.seen.shape)


def _extent(used: np.ndarray) -> slice:
    """From the first to the last of what is True in (n,), which has some."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1)


@lru_cache(maxsize=16)
def sphere_grid(layout: ViewLayout, patches: tuple[int, int], width: int) -> SphereGrid:
    """The grid of `width` x `width / 2` cells for views of `patches` (rows, columns); computed once for each layout.

    Views fade out towards their edges, where things are cut off and perspective stretches most, so that a source seen
    by two views is blended rather than doubled.
    """
    height = width // 2
    azimuth, elevation = pixel_to_direction(*np.meshgrid(np.arange(width), np.arange(height)), width, height)
    rows, columns = patches
    index, weight = [], []
    for view, yaw in enumerate(np.radians(layout.azimuths_deg)):
        x, y = _place_in_view(layout, *_view_coordinates(azimuth, elevation, yaw, np.radians(layout.elevation_deg)))
        inside = (np.abs(x) <= 1) & (np.abs(y) <= 1)
        x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
        fade = np.where(inside, np.minimum(1 - np.abs(x), 1 - np.abs(y)) + 0.02, 0.0)
        corner, bilinear = _bilinear((x + 1) / 2 * columns - 0.5, (y + 1) / 2 * rows - 0.5, rows, columns)
        index.append(corner + view * rows * columns)
        weight.append(bilinear * fade[..., None])
    index = np.stack(index, axis=2).reshape(height * width, -1)
    weight = np.stack(weight, axis=2).reshape(height * width, -1)
    total = weight.sum(axis=1, keepdims=True)
    cell = np.broadcast_to(np.arange(height * width)[:, None], index.shape)
    entries = (weight / np.maximum(total, 1e-9)).astype(np.float32)
    used = entries > 0
    shape = (height * width, len(layout) * rows * columns)
    return SphereGrid(
        sparse.csr_array((entries[used], (cell[used], index[used])), shape=shape), (total > 0).reshape(height, width)
    )


def _place_in_view(layout: ViewLayout, ahead, left, up) -> tuple[np.ndarray, np.ndarray]:
    """x and y of `_view_vectors` for directions in a view's frame; NaN or beyond -1..1 where it does not show them."""
    across, high = layout.limits
    with np.errstate(divide="ignore", invalid="ignore"):
        if layout.projection == "cylindrical":
            return -np.arctan2(left, ahead) / across, -up / np.hypot(ahead, left) / high
        depth = np.where(ahead > 1e-6, ahead, np.nan)
        return -left / depth / across, -up / depth / high


def _view_coordinates(azimuth, elevation, yaw: float, pitch: float):
    """Components (ahead, left, up) of directions in the frame of a view turned by yaw and tilted up by pitch."""
    x, y, z = np.moveaxis(direction_to_vector(azimuth - yaw, elevation), -1, 0)
    return x * np.cos(pitch) + z * np.sin(pitch), y, z * np.cos(pitch) - x * np.sin(pitch)


def _bilinear(x, y, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (..., 4) and weights (..., 4) of the four cells around (x, y) on a rows x columns grid."""
    x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
    x0, y0 = np.minimum(np.floor(x), columns - 2).astype(int), np.minimum(np.floor(y), rows - 2).astype(int)
    dx, dy = x - x0, y - y0
    above, below = y0 * columns + x0, (y0 + 1) * columns + x0
    index = np.stack([above, above + 1, below, below + 1], axis=-1)
    weight = np.stack([(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy], axis=-1)
    return index, weight
