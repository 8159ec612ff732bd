"""Real media files for the tests, made on the spot: WAV, mp4 with and without sound, spherical metadata boxes."""

from __future__ import annotations

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# What precedes the children in the boxes that are no plain containers.
BOX_HEADERS = {b"stsd": 8, b"avc1": 78}
SAMPLE_ENTRY = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"]


def tone(seconds: float, rate: int, frequency: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """16-bit WAV of samples (n,) or (n, channels) in [-1, 1]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def write_mp4(
    path: Path,
    images: list[np.ndarray],
    fps: int = 10,
    sound: np.ndarray | None = None,
    rate: int = 44100,
    index_first: bool = False,
    rotation: int = 0,
    pixel: tuple[int, int] = (1, 1),
) -> Path:
    """h264 of RGB images and, if given, aac of mono sound; `index_first` lets a cut file still be read;
    `pixel`: width and height of a stored one."""
    height, width = images[0].shape[:2]
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", options=options) as container:
        pictures = container.add_stream("libx264", rate=fps, options={"g": str(fps), "crf": "12"})
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        pictures.codec_context.sample_aspect_ratio = Fraction(*pixel)
        if rotation:
            pictures.set_display_rotation(rotation)
        voice = None if sound is None else container.add_stream("aac", rate=rate, layout="mono")
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(pictures.encode(frame))
            if voice is not None:
                start, end = (int(n * rate / fps) for n in (number, number + 1))
                block = av.AudioFrame.from_ndarray(sound[None, start:end], format="fltp", layout="mono")
                block.sample_rate, block.pts = rate, start
                container.mux(voice.encode(block))
        for stream in container.streams:
            container.mux(stream.encode())
    return path


def noise_images(count: int, width: int = 320, height: int = 160) -> list[np.ndarray]:
    """Incompressible pictures, so that a file cut in half is cut in the middle of the pictures."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def cut_off(path: Path, share: float = 0.5) -> Path:
    """A copy of the file that ends early."""
    data = path.read_bytes()
    cut = path.with_name(f"cut_{path.name}")
    cut.write_bytes(data[: int(len(data) * share)])
    return cut


def damaged(path: Path, kind: str, number: int) -> Path:
    """A copy of the file in which a packet of its "video" or "audio" holds nothing but ones."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(getattr(container.streams, kind)[0]) if packet.size]
        start, size = packets[number].pos, packets[number].size
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    copy = path.with_name(f"damaged_{path.name}")
    copy.write_bytes(data)
    return copy


def moved(path: Path, target: Path, seconds: float) -> Path:
    """The same pictures and sound in the container of `target`, on a clock that is `seconds` further."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        streams = {stream: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:  # the last of each stream is empty
                packet.pts, packet.dts = (t + round(seconds / packet.time_base) for t in (packet.pts, packet.dts))
                packet.stream = streams[packet.stream]
                container.mux(packet)
    return target


def insert_box(data: bytes, path: list[bytes], box: bytes) -> bytes:
    """The mp4 with `box` put at the end of the first box at `path`; its index must come last, so that nothing moves."""
    offset = 0
    while offset < len(data):
        size, kind = struct.unpack_from(">I4s", data, offset)
        if kind == path[0]:
            head = 8 + BOX_HEADERS.get(kind, 0)
            body = data[offset + head : offset + size]
            body = insert_box(body, path[1:], box) if path[1:] else body + box
            header = struct.pack(">I4s", head + len(body), kind) + data[offset + 8 : offset + head]
            return data[:offset] + header + body + data[offset + size :]
        offset += size
    raise ValueError(f"no box {path[0]!r}")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def spherical_v1() -> bytes:
    """Google Spherical Video V1: XML in a uuid box of the track."""
    xml = (
        '<?xml version="1.0"?><rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        'xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/">'
        "<GSpherical:Spherical>true</GSpherical:Spherical><GSpherical:Stitched>true</GSpherical:Stitched>"
        "<GSpherical:StitchingSoftware>test</GSpherical:StitchingSoftware>"
        "<GSpherical:ProjectionType>equirectangular</GSpherical:ProjectionType></rdf:SphericalVideo>"
    )
    return box(b"uuid", bytes.fromhex("ffcc8263f8554a938814587a02521fdd") + xml.encode())


def spherical_v2(projection: bytes) -> bytes:
    """Google Spherical Video V2: an sv3d box of the sample entry; projection is b"equi" or b"cbmp"."""
    content = bytes(4 + 16) if projection == b"equi" else bytes(4 + 8)
    header = box(b"prhd", bytes(4 + 12))
    return box(b"sv3d", box(b"svhd", bytes(4) + b"test\0") + box(b"proj", header + box(projection, content)))


def stereo_v2(mode: int) -> bytes:
    """st3d: 0 mono, 1 top and bottom, 2 side by side."""
    return box(b"st3d", bytes(4) + bytes([mode]))
