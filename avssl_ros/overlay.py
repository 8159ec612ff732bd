"""What a person looks at: the picture with its sound-source map, a ring and label per source, and what is not in view.

    picture = draw(image, scene)                        # RGB uint8 in, RGB uint8 out, same size

The map is coloured by "inferno" (perceptually uniform) and blended by its own value, so that where nothing sounds the
picture stays as it is; a thin white line shows where a source's map falls to half its peak. Azimuths are REP-103: 0 is
the middle of the picture, positive to the left. On an equirectangular picture everything that crosses the right edge
goes on at the left. Colours of sources follow their id and are the same in timeline.png.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avssl_ros.geometry import (
    direction_to_perspective_pixel,
    direction_to_pixel,
    direction_to_vector,
    vector_to_direction,
)
from avssl_ros.scene import Localization, Source

MAP_OPACITY = 0.7  # of a map value of 1
DARKEST_SHADE = 0.2  # of the colormap, for a map value of 0
CONTOUR_SHARE = 0.5  # of a source's own peak
FAINTEST_LEVEL = 6  # of 255; what is below is not drawn
STRIP_ROWS = 64  # drawn at a time: small pieces stay in the processor's cache
# Okabe and Ito's palette: distinct for the colour-blind too; black left out, as pictures are often dark.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))
WHITE = (255, 255, 255)
BACKGROUND = (20, 20, 24, 175)


def source_color(identity: int | None) -> tuple[int, int, int]:
    """RGB colour of a source by its id."""
    return PALETTE[(identity or 0) % len(PALETTE)]


def draw(
    image: np.ndarray, scene: Localization, projection: str = "equirectangular", fov_deg: float = 90.0
) -> np.ndarray:
    """The picture with what `scene` says of it.

    Args:
        image: RGB uint8 (H, W, 3), not changed.
        scene: what the localizer said of this image.
        projection: "equirectangular" or "perspective".
        fov_deg: horizontal field of view of a perspective image, degrees.

    Returns RGB uint8 (H, W, 3). Raises ValueError on another shape, type or projection.
    """
    _check_picture(image, projection)
    canvas = _Canvas(image, None if projection == "equirectangular" else fov_deg)
    if scene.sources:
        canvas.draw_map(scene.map)
        for source in scene.sources:
            canvas.draw_contour(source.map)
    if canvas.wraps:
        canvas.draw_azimuth_scale()
    for number, source in enumerate(scene.sources):
        canvas.draw_source(source, source_color(number if source.id is None else source.id))
    message = _strip_text(scene)
    if message:
        canvas.draw_strip(message)
    return canvas.picture


def draw_directions(image: np.ndarray, projection: str = "equirectangular", fov_deg: float = 90.0) -> np.ndarray:
    """The picture with lines where directions of the localizer's are: a camera that is mounted turned shows at once.

    A whole sphere gets 0, +90, 180 and -90 degrees and the horizon; an ordinary picture those of every 15 degrees that
    it shows. Arguments, result and errors are those of `draw`.
    """
    _check_picture(image, projection)
    canvas = _Canvas(image, None if projection == "equirectangular" else fov_deg)
    names = {0: "ahead", 90: "left", 180: "behind", -90: "right"} if canvas.wraps else {0: "ahead"}
    reach = int(fov_deg / 2) // 15 * 15
    for number, degrees in enumerate(names if canvas.wraps else range(-reach, reach + 1, 15)):
        canvas.draw_direction(degrees, names.get(degrees, ""), PALETTE[number % len(PALETTE)])
    if canvas.wraps:
        canvas.picture[canvas.height // 2] = WHITE
    return canvas.picture


def _check_picture(image: np.ndarray, projection: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"expected an RGB uint8 image (height, width, 3), got {image.dtype} {image.shape}")
    if projection not in ("equirectangular", "perspective"):
        raise ValueError(f"projection must be equirectangular or perspective, got {projection!r}")


def _strip_text(scene: Localization) -> str:
    """The line at the bottom; empty where the picture says it all."""
    if scene.unseen:
        return "heard, not in view:  " + ",  ".join(f"{sound.label} {sound.confidence:.0%}" for sound in scene.unseen)
    if scene.sources:
        return ""
    return "there is sound, but no source was found" if scene.active else "nothing sounds"


class _Canvas:
    """A copy of the picture, the way from directions to its pixels, and where labels already stand.

    `fov_deg` is None for an equirectangular picture, which wraps.
    """

    def __init__(self, image: np.ndarray, fov_deg: float | None):
        self.picture = image.copy()
        self.height, self.width = image.shape[:2]
        self.wraps = fov_deg is None
        self._fov_deg = fov_deg
        self._font_size = max(11, round(self.height / 42))
        self._thickness = max(1, round(self.height / 480))
        self._labels: list[tuple[int, int, int, int]] = []  # x, y, width, height

    def draw_map(self, value_map: np.ndarray) -> None:
        """Blend the heat map, float32 (h, w) in [0, 1] of any size."""
        levels, pad = self._enlarge(np.clip(value_map, 0.0, 1.0) * 255, self.width, self.height)
        for top in range(0, self.height, STRIP_ROWS):
            strip = np.s_[top : top + STRIP_ROWS]
            _blend_heat(self.picture[strip], levels[strip, pad:-pad])

    def draw_contour(self, value_map: np.ndarray) -> None:
        """A thin line where one source's map falls to half its peak."""
        peak = float(value_map.max())
        if not peak > 0:
            return
        scale = 2  # half the picture's size is fine enough for a line, and four times as fast
        size = (-(-self.width // scale), -(-self.height // scale))
        levels, pad = self._enlarge(np.clip(value_map / peak, 0.0, 1.0) * 255, *size)
        inside = cv2.compare(levels, CONTOUR_SHARE * 255, cv2.CMP_GE)
        contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(-pad, 0))
        lines = [contour * scale + scale // 2 for contour in contours]
        cv2.polylines(self.picture, lines, True, WHITE, self._thickness, cv2.LINE_AA)

    def _enlarge(self, levels: np.ndarray, width: int, height: int) -> tuple[np.ndarray, int]:
        """A map (h, w) of 0..255 as uint8 (height, width + 2 pad), and pad: columns that let it cross the edges.

        They come from the other end of the map where the picture wraps, else from a copy of the edge.
        """
        border = cv2.BORDER_WRAP if self.wraps else cv2.BORDER_REPLICATE
        padded = cv2.copyMakeBorder(np.nan_to_num(levels).astype(np.uint8), 0, 0, 2, 2, border)
        pad = max(2, round(2 * width / levels.shape[1]))
        return cv2.resize(padded, (width + 2 * pad, height)), pad

    def draw_azimuth_scale(self) -> None:
        """Degrees along the upper edge, so that a reader knows where forward, left and right are."""
        for degrees in range(-135, 181, 45):
            x, _ = direction_to_pixel(np.radians(degrees), 0.0, self.width, self.height)
            text = f"{degrees:+d}°" if degrees % 180 else f"{degrees}°"
            tile = _text_tile((text,), None, max(10, self._font_size * 3 // 4))
            self._paste(tile, int(x) - tile.width // 2, 0)

    def draw_direction(self, degrees: float, name: str, color: tuple[int, int, int]) -> None:
        """An upright line at this azimuth, with its degrees and `name` near the top."""
        x = float(self._pixels(np.radians(degrees), 0.0)[0])
        for shift in self._shifts(x - self._thickness, x + self._thickness):
            left = max(0, round(x + shift) - self._thickness)
            self.picture[:, left : round(x + shift) + self._thickness] = color
        sign = f"{degrees:+d}°" if degrees % 180 else f"{degrees}°"
        tile = _text_tile(tuple(filter(None, (sign, name))), color, self._font_size)
        self._paste(tile, round(x) - tile.width // 2, self.height // 8)

    def draw_source(self, source: Source, color: tuple[int, int, int]) -> None:
        """A ring as wide as the source's extent, and its label; nothing where it lies outside a perspective picture."""
        x, y = self._pixels(source.azimuth, source.elevation)
        if not (-self.width < x < 2 * self.width and -self.height < y < 2 * self.height):
            return
        ring = self._ring(source, float(x))
        for shift in self._shifts(ring[:, 0].min(), ring[:, 0].max()):
            points = [np.round((ring + (shift, 0)) * 16).astype(np.int32)]  # 4 fractional bits
            cv2.polylines(self.picture, points, True, (0, 0, 0), 3 * self._thickness, cv2.LINE_AA, shift=4)
            cv2.polylines(self.picture, points, True, color, 2 * self._thickness, cv2.LINE_AA, shift=4)
        name = source.label if source.id is None else f"{source.label}  #{source.id}"
        where = f"{np.degrees(source.azimuth):+.0f}°   {source.confidence:.0%}"
        tile = _text_tile((name, where), color, self._font_size)
        right, left = round(ring[:, 0].max()) + 4, round(ring[:, 0].min()) - 4 - tile.width
        beyond = right % self.width + tile.width > self.width >= left % self.width + tile.width
        self._place_label(tile, left if self.wraps and beyond else right, round(float(y)))

    def draw_strip(self, message: str) -> None:
        """One line of text on a shaded strip along the lower edge."""
        tile = _text_tile((message,), None, self._font_size)
        strip = self.picture[max(0, self.height - tile.height) :]
        strip[:] = strip // 3
        width = min(tile.width, self.width)  # a long text ends at the edge rather than going on at the left
        self._paste(_Tile(tile.colors[:, :width], tile.keep[:, :width]), 0, self.height - tile.height)

    def _pixels(self, azimuth, elevation):
        if self.wraps:
            return direction_to_pixel(azimuth, elevation, self.width, self.height)
        return direction_to_perspective_pixel(azimuth, elevation, self.width, self.height, self._fov_deg)

    def _ring(self, source: Source, centre_x: float) -> np.ndarray:
        """Pixels (n, 2) of the circle on the sphere around the source; x runs on over the seam."""
        smallest = np.radians(1.5)
        radius = min(max(source.extent, smallest), np.pi / 3)
        forward = direction_to_vector(source.azimuth, source.elevation)
        left = direction_to_vector(source.azimuth + np.pi / 2, 0.0)
        turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)[:, None]
        around = np.cos(turn) * left + np.sin(turn) * np.cross(forward, left)
        x, y = self._pixels(*vector_to_direction(np.cos(radius) * forward + np.sin(radius) * around))
        if self.wraps:
            x = centre_x + (x - centre_x + self.width / 2) % self.width - self.width / 2
        return np.stack([x, y], axis=1)[np.isfinite(x)]

    def _place_label(self, tile: _Tile, x: int, y: int) -> None:
        """Put a label at x beside its ring, centred on y, inside the picture and below labels that are in its way."""
        height, width = tile.height, tile.width
        y -= height // 2
        if not self.wraps:
            x = max(0, min(x, self.width - width))
        for other_x, other_y, other_width, other_height in sorted(self._labels, key=lambda label: label[1]):
            apart = (x - other_x + self.width / 2) % self.width - self.width / 2 if self.wraps else x - other_x
            if -width < apart < other_width and -height < y - other_y < other_height:
                y = other_y + other_height + 2
        y = max(0, min(y, self.height - height))
        self._labels.append((x, y, width, height))
        self._paste(tile, x, y)

    def _paste(self, tile: _Tile, x: int, y: int) -> None:
        """Blend a tile at pixel (x, y); on a picture that wraps, what leaves one side enters the other."""
        top, bottom = max(0, y), min(self.height, y + tile.height)
        for shift in self._shifts(x, x + tile.width):
            left, right = max(0, x + shift), min(self.width, x + shift + tile.width)
            part = np.s_[top - y : bottom - y, left - x - shift : right - x - shift]
            if left < right and top < bottom:
                _blend(self.picture[top:bottom, left:right], tile.colors[part], tile.keep[part])

    def _shifts(self, left: float, right: float) -> list[int]:
        """By how many pixels to shift what spans columns left..right, for each copy of it inside the picture."""
        turns = (-self.width, 0, self.width) if self.wraps else (0,)
        return [turn for turn in turns if left + turn < self.width and right + turn >= 0]


@dataclass(frozen=True)
class _Tile:
    """A drawn piece: colors (h, w, 3) uint8 times their opacity; keep (h, w, 3) uint8, 255 where transparent."""

    colors: np.ndarray
    keep: np.ndarray

    @property
    def height(self) -> int:
        return self.colors.shape[0]

    @property
    def width(self) -> int:
        return self.colors.shape[1]


def _blend(picture: np.ndarray, colors: np.ndarray, keep: np.ndarray) -> None:
    """picture = picture * keep / 255 + colors in place; all (h, w, 3) uint8, colors already times their opacity."""
    picture[:] = cv2.add(cv2.multiply(picture, keep, scale=1 / 255), colors)


def _blend_heat(picture: np.ndarray, levels: np.ndarray) -> None:
    """Blend the heat map into the picture (h, w, 3) in place, only where its levels (h, w) uint8 can be seen."""
    visible = np.flatnonzero(levels.max(axis=0) >= FAINTEST_LEVEL)
    if not visible.size:
        return
    columns = np.s_[:, visible[0] : visible[-1] + 1]
    colors, keep = _heat_tables()
    kept = cv2.cvtColor(cv2.LUT(levels[columns], keep), cv2.COLOR_GRAY2RGB)
    _blend(picture[columns], cv2.applyColorMap(levels[columns], colors), kept)


@lru_cache(maxsize=1)
def _heat_tables() -> tuple[np.ndarray, np.ndarray]:
    """By map level: inferno's RGB times its opacity, (256, 1, 3) uint8, and what is kept of the picture, (256, 1)."""
    value = np.arange(256)[:, None] / 255
    # Without inferno's black end, which would look like a shadow around the source.
    shades = np.round(255 * (DARKEST_SHADE + (1 - DARKEST_SHADE) * value)).astype(np.uint8)
    inferno = cv2.cvtColor(cv2.applyColorMap(shades, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    # Steep at first, so that a source of low confidence, whose whole map is low, can still be seen.
    opacity = MAP_OPACITY * (1 - (1 - value) ** 2)
    return np.round(inferno * opacity[..., None]).astype(np.uint8), np.round((1 - opacity) * 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@lru_cache(maxsize=256)
def _text_tile(lines: tuple[str, ...], color: tuple[int, int, int] | None, size: int) -> _Tile:
    """Lines of text. With a colour: a label, its first line bold, on a shaded plate with a
    bar of that colour; without: bare white text with a dark outline."""
    margin = max(3, size // 3)
    fonts = [_font(size, bold=color is not None and number == 0) for number in range(len(lines))]
    spacing = round(size * 1.3)
    width = max(int(font.getlength(line)) for font, line in zip(fonts, lines, strict=True)) + 3 * margin
    plate = (*BACKGROUND,) if color else (0, 0, 0, 0)
    tile = Image.new("RGBA", (width, spacing * len(lines) + margin), plate)
    pen = ImageDraw.Draw(tile)
    if color:
        pen.rectangle((0, 0, max(2, size // 5), tile.height), fill=(*color, 255))
    outline = {} if color else {"stroke_width": 1, "stroke_fill": (0, 0, 0, 160)}
    for number, (font, line) in enumerate(zip(fonts, lines, strict=True)):
        pen.text((1.5 * margin, margin / 2 + number * spacing), line, fill=(*WHITE, 255), font=font, **outline)
    pixels = np.asarray(tile)
    opacity = cv2.merge([pixels[..., 3]] * 3)
    return _Tile(cv2.multiply(pixels[..., :3], opacity, scale=1 / 255), 255 - opacity)
