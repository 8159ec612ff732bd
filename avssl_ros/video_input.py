"""Where pictures come from when they come from files: videos frame by frame, single images, and their projection.

    video = VideoFile("walk.mp4")
    print(video.projection, video.projection_reason)
    for time, image in video:          # seconds, RGB uint8 (height, width, 3)
        ...
    if video.error: print(video.error)    # the file was cut off or damaged; what could be read was given

The projection is read from spherical metadata, which FFmpeg decodes from Google's Spherical Video V1 and V2 boxes (mp4)
and from Matroska, and which PyAV hands over with each frame; without it a 2:1 shape is taken for 360 degrees.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import PIL.Image

try:
    import simplejpeg  # libjpeg-turbo, in half of OpenCV's time
except ImportError:  # rosdep has no key for it
    simplejpeg = None

from avssl_ros.audio_input import (
    MAX_BACK_SECONDS,
    MAX_JUMP_SECONDS,
    MAX_PIXELS,
    clock_back,
    decoded,
    existing_file,
    missing_parts,
    of_known_kind,
    open_media,
    start_of,
)

MAX_PICTURE_BYTES = 1 << 28  # of a picture file
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Flat pictures reach 350 as PNG and 170 as JPEG; more is no camera's picture but a small message that fills memory.
MAX_PIXELS_PER_BYTE = 400
MAX_FRAME_PIXELS_PER_FILE_BYTE = 1000  # of a video, which may be short and black
ALWAYS_ALLOWED_PIXELS = 1 << 20
# Parts of its size at which OpenCV decodes a picture, smallest first.
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
MAX_SCANS = 32  # of a progressive JPEG, which usually has 10: each costs as much time as the whole picture
MAX_SQUEEZE, SQUARE_TOLERANCE = 4.0, 0.02  # of stored pixels; more is a damaged header, less is meant to be square
USUAL_FPS, FPS_RANGE = 25.0, (0.01, 1000.0)
EQUIRECTANGULAR_TOLERANCE = 0.02  # how far width / height may be from 2: codecs and cameras round to multiples of 16
# libavutil/spherical.h, enum AVSphericalProjection
SPHERICAL_PROJECTIONS = ("equirectangular", "cubemap", "cropped equirectangular", "half equirectangular")
SPHERICAL_PROJECTIONS += ("rectilinear", "fisheye", "parametric immersive")
STEREO_LAYOUTS = {1: "side by side", 2: "top and bottom"}  # libavutil/stereo3d.h, enum AVStereo3DType


class VideoFile:
    """A video file. Iterating gives (time in seconds, image RGB uint8 (height, width, 3)), upright, in order.

    Times begin at about 0, on one axis with the file's sound (`audio_input.start_of`).

    Args:
        path: any video PyAV opens.
        projection: "auto", or "equirectangular" or "perspective" to overrule what the file looks like.

    Attributes:
        fps, width, height: of the upright picture.
        duration: seconds that the file says it has, or None.
        has_audio: whether it has a sound stream.
        projection, projection_reason: "equirectangular" or "perspective", and why, for a person.
        error: None, or after iterating what is wrong with the file; every frame that could be read was given.

    Raises FileNotFoundError, or ValueError where the file is empty, no video, larger than MAX_PIXELS, without one
    readable frame, or in a projection the localizer does not know.
    """

    def __init__(self, path: str | Path, projection: str = "auto"):
        self.path = Path(path)
        self.error: str | None = None
        with open_media(self.path) as container:
            stream = _picture_stream(container, self.path)
            self.fps = float(stream.average_rate or stream.guessed_rate or USUAL_FPS)
            if not FPS_RANGE[0] <= self.fps <= FPS_RANGE[1]:  # a damaged header, or pictures without a rhythm
                self.fps = USUAL_FPS
            self.duration = float(stream.duration * stream.time_base) if stream.duration else None
            if self.duration is None and container.duration:
                self.duration, start = container.duration / av.time_base, start_of(container)
                if "matroska" in container.format.name and self.duration > start:
                    self.duration -= start  # Matroska states the time of the end, wherever the beginning is
            self.has_audio = bool(container.streams.audio)
            self._squeezed = _squeezed(stream)
            first = self._first_frame(container, stream)
        self.height, self.width = _upright(first, self._squeezed).shape[:2]
        if projection == "auto":
            self.projection, self.projection_reason = _projection_of_frame(first, self.width, self.height, self.path)
        else:
            self.projection, self.projection_reason = _given(projection)

    def _first_frame(self, container, stream) -> av.VideoFrame:
        error = None
        try:
            for frame in decoded(container, stream):
                if not isinstance(frame, av.error.FFmpegError):
                    return frame
                error = error or frame
        except av.error.FFmpegError as last:
            error = error or last
        if error is None:
            raise ValueError(f"{self.path}: the video has no frames; it was probably cut off")
        raise ValueError(f"{self.path}: not one frame of the video can be decoded ({error})") from error

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        end, count = 0.0, 0
        with open_media(self.path) as container:
            stream = _picture_stream(container, self.path)
            stream.thread_type = "AUTO"
            start = start_of(container)
            try:
                for frame in decoded(container, stream):
                    if isinstance(frame, av.error.FFmpegError):
                        self.error = self.error or missing_parts(self.path, "video", end, frame)
                        continue
                    time = count / self.fps if frame.time is None else float(frame.time) - start
                    if time < end - MAX_BACK_SECONDS:
                        back = clock_back(self.path, "video", end)
                        if self.error in (None, back):  # else it is the disorder behind a damaged part
                            self.error = back
                            return
                    if self.error and time + 1 / self.fps < end:
                        continue  # behind a damaged frame the decoder may lose the order for a moment
                    if time > end + MAX_JUMP_SECONDS:
                        self.error = f"{self.path} is damaged: its video goes from {end:.1f} to {time:.1f} s"
                        return
                    image = _upright(frame, self._squeezed)
                    if image.shape[:2] != (self.height, self.width):
                        image = cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA)
                    end, count = time + 1 / self.fps, count + 1
                    yield time, image
            except av.error.FFmpegError as error:
                self.error = f"{self.path} is damaged or cut off: its video can be read up to {end:.1f} s ({error})"
                return
        promised = self.duration if "mp4" in container.format.name else None
        if promised and end < promised - max(0.5, 0.02 * promised):
            self.error = f"{self.path} is cut off: its video ends at {end:.1f} s of {promised:.1f} s"


def read_image(path: str | Path) -> np.ndarray:
    """A picture file as RGB uint8 (height, width, 3), upright as its EXIF data say.

    Raises FileNotFoundError, or ValueError where it is no picture or larger than MAX_PIXELS.
    """
    path = Path(path)
    existing_file(path)
    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_PICTURE_BYTES} that are read")
    try:
        return decode_picture(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def decode_picture(data: bytes, enough: int | None = None) -> np.ndarray:
    """A compressed picture as RGB uint8 (height, width, 3), upright; kind and size are checked before it is decoded.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file.
        enough: pixels across that will do. A picture of at least twice as many comes at 1/2, 1/4 or 1/8 of its size,
            which libjpeg decodes three to four times as fast, averaged over what is left out.

    Raises ValueError where it is none of these, damaged, or larger than MAX_PIXELS or than its bytes make likely.
    """
    width, plain_jpeg = _checked_header(data)
    factor = next((factor for factor in REDUCED if enough and width >= factor * enough), 1)
    if plain_jpeg and simplejpeg:
        try:
            # Where the picture is finer than what will do, its colours may be repeated instead of interpolated.
            return simplejpeg.decode_jpeg(data, fastupsample=bool(enough and width >= enough),
                                          min_width=-(-width // factor), min_factor=factor)  # fmt: skip
        except ValueError:
            pass  # odd or damaged: OpenCV decodes what can be
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED.get(factor, cv2.IMREAD_COLOR))
    except cv2.error as error:
        raise ValueError(f"the picture cannot be decoded: {error.err}") from error
    if image is None:
        raise ValueError(f"the picture of {len(data)} bytes cannot be decoded: it is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _checked_header(data: bytes) -> tuple[int, bool]:
    """Width by the picture's header, and whether it is a JPEG in colours that stands upright.

    Raises ValueError where kind or size are not such as are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are judged here, and of odd metadata
            with PIL.Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:  # reads no further than the size
                width, height, kind = picture.width, picture.height, picture.format
                plain_jpeg = kind == "JPEG" and picture.mode == "RGB" and "exif" not in picture.info
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"the picture of {len(data)} bytes is too large to be decoded: {error}") from error
    except Exception as error:  # a damaged header makes Pillow's readers raise whatever they stumble over
        raise ValueError(
            f"{len(data)} bytes cannot be decoded as a picture; wanted JPEG, PNG, WebP, BMP or TIFF ({error})"
        ) from error
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the picture is too large to be decoded: {width}x{height} pixels, more than the {MAX_PIXELS >> 20} "
            "million that are read; scale it down"
        )
    if width * height > max(ALWAYS_ALLOWED_PIXELS, MAX_PIXELS_PER_BYTE * len(data)):
        raise ValueError(f"the picture claims {width}x{height} pixels in only {len(data)} bytes; it is not decoded")
    if kind in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"the JPEG picture has {data.count(bytes([255, 218]))} scans, more than {MAX_SCANS}")
    if kind == "PNG":
        _check_png_chunks(data)
    return width, plain_jpeg


def _check_png_chunks(data: bytes) -> None:
    """Raises ValueError where a chunk claims more bytes than there are: OpenCV takes memory for all of them."""
    start, kind = 8, b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise ValueError(f"the PNG picture of {len(data)} bytes is cut off")
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        start += 12 + length
    if start > len(data):
        raise ValueError(f"the PNG picture of {len(data)} bytes is cut off")


def is_image(path: str | Path) -> bool:
    """Whether the file is a still picture rather than a video or sound. Raises as `read_image` does."""
    with open_media(Path(path)) as container:
        return container.format.name == "image2" or container.format.name.endswith("_pipe")


def image_projection(path: str | Path, image: np.ndarray, projection: str = "auto") -> tuple[str, str]:
    """The projection of a picture file and why: as given, else by its Photo Sphere (GPano) metadata, else its shape.

    Raises ValueError where the metadata say that it shows a part of the sphere.
    """
    if projection != "auto":
        return _given(projection)
    with Path(path).open("rb") as file:
        head = file.read(1 << 18)  # XMP stands in the first segments
    if b"GPano:ProjectionType" in head and b"equirectangular" in head:
        _check_whole_sphere(head, Path(path))
        return "equirectangular", "its Photo Sphere metadata say so"
    return projection_of_shape(image.shape[1], image.shape[0])


def _check_whole_sphere(xmp: bytes, path: Path) -> None:
    """Raises ValueError where the Photo Sphere metadata state a picture smaller than its sphere."""
    for side in (b"Width", b"Height"):
        there, full = (
            re.search(rb"GPano:%s%sPixels\s*(?:=\s*[\"']|>)\s*(\d{1,9})" % (what, side), xmp)  # attribute or element
            for what in (b"CroppedAreaImage", b"FullPano")
        )
        if there and full and int(there[1]) < (1 - EQUIRECTANGULAR_TOLERANCE) * int(full[1]):
            raise ValueError(
                f"{path}: its Photo Sphere metadata say that it shows a part of the sphere ({side.decode().lower()} "
                f"{int(there[1])} of {int(full[1])} pixels), which is not supported; put it into a whole sphere of "
                "twice the width as height, or give --projection to overrule"
            )


def _given(projection: str) -> tuple[str, str]:
    if projection not in ("equirectangular", "perspective"):
        raise ValueError(f"projection must be auto, equirectangular or perspective, got {projection!r}")
    return projection, "it was given"


def _picture_stream(container, path: Path):
    """The first video stream that is no cover picture, with its decoder limited to MAX_PIXELS."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise ValueError(f"{path} has no picture, only sound; give a video or an image")
    stream = of_known_kind(streams[0], path)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height == 0:
        raise ValueError(f"{path} is damaged, or its pictures have more than {MAX_PIXELS >> 20} million pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{path} has {width}x{height} pixels, more than the {MAX_PIXELS >> 20} million that are read; scale it down"
        )
    size = path.stat().st_size
    most = min(MAX_PIXELS, max(ALWAYS_ALLOWED_PIXELS, MAX_FRAME_PIXELS_PER_FILE_BYTE * size))
    if width * height > most:
        raise ValueError(f"{path} claims {width}x{height} pixels in a file of only {size} bytes; it is not decoded")
    stream.codec_context.options = {"max_pixels": str(most)}  # frames may be larger than the header says
    return stream


def _squeezed(stream) -> float:
    """Width of a stored pixel by its height: not 1 where a picture is stored narrower than it is shown, as HDV's.

    A percent more or less is left by programs that scale to even sizes.
    """
    ratio = float(stream.sample_aspect_ratio or 1.0)
    is_meant = SQUARE_TOLERANCE < abs(ratio - 1.0) and 1 / MAX_SQUEEZE <= ratio <= MAX_SQUEEZE
    return ratio if is_meant else 1.0


def _upright(frame: av.VideoFrame, squeezed: float) -> np.ndarray:
    """RGB uint8 (height, width, 3) of square pixels, no more than are stored, turned as the display matrix says
    (telephones store portrait videos lying)."""
    image = frame.to_ndarray(format="rgb24")
    if squeezed != 1.0:
        size = round(frame.width * min(squeezed, 1.0)), round(frame.height / max(squeezed, 1.0))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def _projection_of_frame(frame: av.VideoFrame, width: int, height: int, path: Path) -> tuple[str, str]:
    # By index, which means the same in every PyAV: iterating gives the data up to version 18, their types from 19 on.
    side_data = {data.type.name: bytes(data) for data in map(frame.side_data.__getitem__, range(len(frame.side_data)))}
    stereo = STEREO_LAYOUTS.get(struct.unpack_from("=i", side_data["STEREO3D"])[0]) if "STEREO3D" in side_data else None
    if stereo:
        raise ValueError(
            f"{path} is a stereo video ({stereo}); cut out one eye first, e.g. "
            "'ffmpeg -i in.mp4 -vf stereo3d=abl:ml out.mp4' for top and bottom, or give --projection to overrule"
        )
    if "SPHERICAL" not in side_data:
        return projection_of_shape(width, height)
    (code,) = struct.unpack_from("=i", side_data["SPHERICAL"])
    name = SPHERICAL_PROJECTIONS[code] if code < len(SPHERICAL_PROJECTIONS) else f"unknown ({code})"
    if name == "equirectangular":
        return "equirectangular", "its spherical metadata say so"
    if name == "rectilinear":
        return "perspective", "its spherical metadata say that it is rectilinear"
    raise ValueError(
        f"{path}: its spherical metadata say {name}, which is not supported; convert it with FFmpeg's v360 filter to "
        "equirectangular, or give --projection to overrule"
    )


def projection_of_shape(width: int, height: int) -> tuple[str, str]:
    """The projection that a picture of this shape has without metadata, and why, for a person."""
    shape = f"{width}x{height}"
    if abs(width / height - 2.0) <= 2.0 * EQUIRECTANGULAR_TOLERANCE:
        return "equirectangular", f"no spherical metadata, and {shape} is the 2:1 shape of a 360 degree picture"
    return "perspective", f"no spherical metadata, and {shape} is not the 2:1 shape of a 360 degree picture"
