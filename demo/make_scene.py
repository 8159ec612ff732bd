"""Makes the demo scene: scene.mp4 (360 degrees, with sound) and scene.json (what is where, what sounds when).

The scene ships ready made; this is its recipe, for Debian 12 and with any Python environment that has avssl_ros:

    apt-get install tuxpaint-stamps-default blender-data
    pip install OpenEXR scikit-image
    python demo/make_scene.py

Cut-out photographs stand upright on a meadow in known directions, and one after the other is heard, with silence
between; the last sound belongs to nothing in view. Licences and authors: LICENSES.md.
"""

from __future__ import annotations

import argparse
import json
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import OpenEXR
import soxr
from skimage import data as skimage_data

from avssl_ros.audio_input import read_audio
from avssl_ros.geometry import direction_to_perspective_pixel, pixel_to_direction, wrap_angle

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1280, 640
FPS = 10
SAMPLE_RATE = 32000
SECONDS = 18.0
BOARD, BOARD_FOV = 1400, 120.0  # the upright pinhole picture that a cut-out is drawn on before it is bent to the sphere
PEAK, ROOM_NOISE = 0.5, 1e-4  # a voice at -6 dBFS over a microphone's noise at -80 dBFS


@dataclass(frozen=True)
class Thing:
    """Something to be seen: `azimuth_deg` of its middle, elevations of its top and bottom edge, degrees.

    `labels` are names by which a model may call it; `sound` and its span in seconds where it is heard.
    """

    name: str
    labels: tuple[str, ...]
    picture: str
    azimuth_deg: float
    bottom_deg: float
    top_deg: float
    sound: tuple[str, ...] = ()
    span: tuple[float, float] | None = None


GREEK = ("animals/fish/lobster_desc_el.ogg", "animals/insects/hornet_desc_el.ogg", "animals/birds/nandou_desc_el.ogg")
THINGS = (
    Thing("sheep", ("sheep or goat",), "animals/mammals/bovines/sheep.png", 172.0, -26.0, 8.0,
          ("animals/mammals/bovines/sheep.ogg",) * 3, (1.0, 4.6)),
    Thing("person", ("person",), "astronaut", -97.0, -35.0, 14.0, GREEK, (6.0, 9.9)),
    Thing("dog", ("dog", "wolf"), "animals/mammals/dogs/dog.png", 45.0, -28.0, 12.0,
          ("animals/mammals/dogs/dog.ogg",) * 6, (11.3, 14.5)),
    Thing("rooster", ("chicken",), "animals/birds/rooster.png", -32.0, -28.0, 10.0),
    Thing("horse", ("horse",), "animals/mammals/equines/horse.png", 108.0, -22.0, 12.0),
)
UNSEEN = Thing("lion", ("big cat",), "", 0.0, 0.0, 0.0, ("animals/mammals/cats/lion.ogg",) * 3, (15.5, 18.0))


def read_meadow(path: Path) -> np.ndarray:
    """The panorama, tone-mapped from its floating-point exposure: RGB float32 (HEIGHT, WIDTH, 3) in [0, 1]."""
    with OpenEXR.File(str(path)) as file:
        light = file.channels()["RGB"].pixels[..., :3].astype(np.float32)
    # Around the sun's disc the file's compression rings, with black among 30000: close those holes.
    around_sun = cv2.dilate(light, np.ones((9, 9))) > 300
    light = np.where(around_sun, cv2.morphologyEx(light, cv2.MORPH_CLOSE, np.ones((7, 7))), light)
    exposed = light / np.percentile(light, 85) * 0.6
    tone = np.clip(exposed / (1 + 0.25 * exposed), 0, 1) ** (1 / 2.2)
    return np.clip(cv2.resize(tone, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), 0, 1)


def cut_out_astronaut() -> np.ndarray:
    """The astronaut without the studio behind her: RGBA uint8. GrabCut from a rough outline drawn by hand."""
    image = np.ascontiguousarray(skimage_data.astronaut())
    mask = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    mask[:, 40:] = cv2.GC_PR_FGD
    person = ((222, 95), (50, 75)), ((214, 222), (88, 62)), ((220, 400), (150, 110)), ((395, 445), (85, 85))
    studio = ((420, 150), (60, 140)), ((50, 90), (60, 120)), ((320, 130), (40, 80))
    for ellipses, kind in ((person, cv2.GC_FGD), (studio, cv2.GC_BGD)):
        for centre, half_axes in ellipses:
            cv2.ellipse(mask, centre, half_axes, 0, 0, 360, kind, -1)
    table = [(362, 280), (512, 280), (512, 455), (497, 440), (485, 400), (455, 362), (420, 345), (385, 340), (362, 345)]
    cv2.fillPoly(mask, [np.array(table)], cv2.GC_BGD)
    cv2.setRNGSeed(0)
    cv2.grabCut(image, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 8, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    inside = cv2.morphologyEx(inside, cv2.MORPH_OPEN, np.ones((7, 7)))
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(inside)
    largest = (parts == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    alpha = cv2.morphologyEx(largest, cv2.MORPH_CLOSE, np.ones((15, 15))).astype(np.float32)
    alpha *= np.clip((image.shape[0] - np.arange(image.shape[0])) / 120, 0, 1)[:, None]  # sinks into the grass
    return np.dstack([image, (alpha * 255).astype(np.uint8)])[:, 40:]


def read_cut_out(thing: Thing, stamps: Path) -> np.ndarray:
    """RGBA float32 in [0, 1], cropped to what is not transparent."""
    if thing.picture == "astronaut":
        picture = cut_out_astronaut()
    else:
        picture = cv2.cvtColor(cv2.imread(str(stamps / thing.picture), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    x, y, width, height = cv2.boundingRect((picture[..., 3] > 127).astype(np.uint8))
    return picture[y : y + height, x : x + width].astype(np.float32) / 255


def stand_up(scene: np.ndarray, thing: Thing, cut_out: np.ndarray) -> tuple[np.ndarray, float]:
    """The scene with the cut-out standing in it, and its width in degrees."""
    focal = BOARD / 2 / np.tan(np.radians(BOARD_FOV) / 2)
    centre = (BOARD - 1) / 2
    top, bottom = (centre - focal * np.tan(np.radians(edge)) for edge in (thing.top_deg, thing.bottom_deg))
    scale = (bottom - top) / cut_out.shape[0]
    width = cut_out.shape[1] * scale

    feathered = np.pad(cut_out, ((4, 4), (4, 4), (0, 0)))
    feathered[..., 3] = cv2.GaussianBlur(cv2.erode(feathered[..., 3], np.ones((3, 3))), (0, 0), 1.2)
    feathered[..., :3] *= feathered[..., 3:]
    place = np.array([[scale, 0, centre - width / 2 - 4 * scale], [0, scale, top - 4 * scale]])
    board = cv2.warpAffine(feathered, place, (BOARD, BOARD), flags=cv2.INTER_CUBIC)

    azimuth, elevation = pixel_to_direction(*np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), WIDTH, HEIGHT)
    turned = wrap_angle(azimuth - np.radians(thing.azimuth_deg))
    columns, rows = direction_to_perspective_pixel(turned, elevation, BOARD, BOARD, BOARD_FOV)
    maps = [np.nan_to_num(axis, nan=-10.0).astype(np.float32) for axis in (columns, rows)]
    layer = np.clip(cv2.remap(board, *maps, cv2.INTER_LINEAR), 0, 1)
    return scene * (1 - layer[..., 3:]) + layer[..., :3], 2 * np.degrees(np.arctan(width / 2 / focal))


def read_sound(path: Path, seconds: float) -> np.ndarray:
    """Mono float32 at SAMPLE_RATE without the silence around it, at most `seconds` long, at the common loudness."""
    samples = soxr.resample(*read_audio(path), SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1]][: round(seconds * SAMPLE_RATE)]
    from_the_edge = np.minimum(np.arange(len(samples)), np.arange(len(samples))[::-1])
    faded = samples * np.minimum(1, from_the_edge / (0.01 * SAMPLE_RATE))
    return (faded / np.abs(faded).max() * PEAK).astype(np.float32)


def mix_sound(stamps: Path) -> np.ndarray:
    """Mono float32: everything that sounds, at its time, over the noise of the room."""
    sound = np.random.default_rng(0).normal(0, ROOM_NOISE, round(SECONDS * SAMPLE_RATE)).astype(np.float32)
    for thing in (thing for thing in (*THINGS, UNSEEN) if thing.span):
        time, end = thing.span
        for file in thing.sound:
            if time >= end:
                break
            samples = read_sound(stamps / file, end - time)
            start = round(time * SAMPLE_RATE)
            sound[start : start + len(samples)] += samples
            time += len(samples) / SAMPLE_RATE + 0.15
            print(f"{thing.name}: {file} until {time - 0.15:.2f} s")
    return sound


def write_video(path: Path, image: np.ndarray, sound: np.ndarray) -> None:
    """One picture (RGB uint8) for as long as the sound: h264 and aac."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "22", "preset": "slow"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 96000
        for index in range(round(SECONDS * FPS)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def mark_as_spherical(path: Path) -> None:
    """Adds Google's Spherical Video V1 box to the first track (video), so that players and `avssl` know the projection.

    FFmpeg's muxer writes it only from data that PyAV cannot set. The index (moov) lies behind the pictures, so no
    offset in it changes.
    """
    xmp = (
        b'<?xml version="1.0"?><rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        b'xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/">'
        b"<GSpherical:Spherical>true</GSpherical:Spherical><GSpherical:Stitched>true</GSpherical:Stitched>"
        b"<GSpherical:StitchingSoftware>avssl_ros</GSpherical:StitchingSoftware>"
        b"<GSpherical:ProjectionType>equirectangular</GSpherical:ProjectionType></rdf:SphericalVideo>"
    )
    box = struct.pack(">I", 24 + len(xmp)) + b"uuid" + bytes.fromhex("ffcc8263f8554a938814587a02521fdd") + xmp
    content = bytearray(path.read_bytes())
    moov, trak = content.rindex(b"moov") - 4, content.index(b"trak", content.rindex(b"moov")) - 4
    if content.index(b"mdat") > moov:
        raise ValueError(f"{path}: the index lies before the pictures; its offsets would have to change")
    sizes = {start: struct.unpack_from(">I", content, start)[0] for start in (moov, trak)}
    content[trak + sizes[trak] : trak + sizes[trak]] = box
    for start, size in sizes.items():
        struct.pack_into(">I", content, start, size + len(box))
    path.write_bytes(content)


def describe(widths: dict[str, float]) -> dict:
    """scene.json: sounding and silent objects with their directions and times; what is heard but not in view."""

    def seen(thing: Thing) -> dict:
        return {
            "name": thing.name, "labels": list(thing.labels), "azimuth_deg": thing.azimuth_deg,
            "elevation_deg": (thing.top_deg + thing.bottom_deg) / 2, "width_deg": round(widths[thing.name], 1),
        }

    return {
        "video": "scene.mp4",
        "seconds": SECONDS,
        "sounding": [{**seen(t), "from": t.span[0], "to": t.span[1]} for t in THINGS if t.span],
        "silent": [seen(thing) for thing in THINGS if not thing.span],
        "unseen": [{"name": UNSEEN.name, "labels": list(UNSEEN.labels), "from": UNSEEN.span[0], "to": UNSEEN.span[1]}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stamps", type=Path, default=Path("/usr/share/tuxpaint/stamps"))
    parser.add_argument("--panorama", type=Path,
                        default=Path("/usr/share/blender/datafiles/studiolights/world/sunrise.exr"))
    parser.add_argument("--output", type=Path, default=HERE)
    arguments = parser.parse_args()
    scene, widths = read_meadow(arguments.panorama), {}
    for thing in THINGS:
        scene, widths[thing.name] = stand_up(scene, thing, read_cut_out(thing, arguments.stamps))
    image = (np.clip(scene, 0, 1) * 255).round().astype(np.uint8)
    write_video(arguments.output / "scene.mp4", image, mix_sound(arguments.stamps))
    mark_as_spherical(arguments.output / "scene.mp4")
    (arguments.output / "scene.json").write_text(json.dumps(describe(widths), indent=2) + "\n")
    print(f"{arguments.output / 'scene.mp4'}: {(arguments.output / 'scene.mp4').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
