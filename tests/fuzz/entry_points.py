"""Where data from outside come in, each with valid inputs to spoil and what is done with them.

An entry point is fed with valid inputs that were mutated (bits flipped, bytes and numbers overwritten, cut, repeated;
fields and JSON values replaced) and may raise nothing but the errors it documents.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import media
import numpy as np
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header, String

from avssl_ros import features
from avssl_ros.audio_input import AudioBuffer, SoundFile, read_audio
from avssl_ros.encoders import parse_manifest
from avssl_ros.geometry import ViewLayout
from avssl_ros.microphone_process import SAID, SOUND, Block, BlockReader
from avssl_ros.noise import ROWS, NoiseProfile
from avssl_ros.overlay import draw as draw_picture
from avssl_ros.paths import shipped_models
from avssl_ros.ros import converters, parameters
from avssl_ros.scene import Localization, Source, Unseen, read_scene
from avssl_ros.tracking import TrackingConfig
from avssl_ros.video_input import VideoFile, read_image

NUMBERS = [0, 1, 2, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF]
FLOATS = [0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan")]
JUNK = [None, True, False, -1, 0, 1, 2**31, 2**70, -0.5, 1e308, "", "x", "5", "\0", [], {}, [[]], [None], {"a": 1}]
HEADER = Header(stamp=converters.seconds_to_stamp(1700000000.5), frame_id="camera")


@dataclass(frozen=True)
class EntryPoint:
    """`use(input)` for every input of `inputs`; `valid` ones are accepted. `share` of all inputs goes to it."""

    name: str
    inputs: st.SearchStrategy
    use: Callable
    valid: list
    share: float
    errors: tuple[type[Exception], ...] = (ValueError,)


# ---- mutations


@st.composite
def spoiled(draw, whole: list[bytes]) -> bytes:
    """One of `whole` with up to five mutations, half of them within its first 64 bytes."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 5))):
        if not data:
            break
        within = len(data) if draw(st.booleans()) else min(64, len(data))
        at = draw(st.integers(0, within - 1))
        kind = draw(st.sampled_from(("flip", "byte", "number", "cut", "repeat", "remove", "zero")))
        length = draw(st.integers(1, 64)) if kind in ("repeat", "remove", "zero") else 0
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            size, order = draw(st.sampled_from(((2, "big"), (2, "little"), (4, "big"), (4, "little"))))
            data[at : at + size] = (draw(st.sampled_from(NUMBERS)) & (256**size - 1)).to_bytes(size, order)
        elif kind == "cut":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 20))
        elif kind == "remove":
            del data[at : at + length]
        else:
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


@st.composite
def spoiled_json(draw, whole: list[dict]) -> str:
    """One of `whole` as text, with up to three values replaced or taken out, or its text mutated."""
    text = json.dumps(draw(st.sampled_from(whole)))
    if draw(st.booleans()):
        return draw(spoiled([text.encode()])).decode(errors="replace")
    tree = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        node, key = {"": tree}, ""
        while isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 3)):
            node = node[key]
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(min(len(node), 50))))
        if key != "" and draw(st.integers(0, 3)) == 0:
            del node[key]
        elif key != "":
            node[key] = copy.deepcopy(draw(st.sampled_from([*JUNK, *FLOATS])))  # it may be spoiled further
        if not tree:
            break
    return json.dumps(tree)


# ---- images


def _pictures() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    smooth = cv2.resize(noise[:4, :8], (128, 64))
    made = [(".jpg", smooth, []), (".jpg", noise, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".png", smooth, []),
            (".webp", smooth, [cv2.IMWRITE_WEBP_QUALITY, 80]), (".bmp", noise[:16], []),
            (".tiff", smooth, [])]  # fmt: skip
    return [cv2.imencode(kind, image, options)[1].tobytes() for kind, image, options in made]


def use_compressed(given: tuple[bytes, int | None]) -> None:
    data, enough = given
    image = converters.message_to_rgb(CompressedImage(format="jpeg", data=data), enough)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def use_raw(fields: dict) -> None:
    image = converters.message_to_rgb(Image(**fields))
    assert image.shape == (fields["height"], fields["width"], 3) and image.dtype == np.uint8


def _raw(encoding: str, width: int, height: int, channels: int, padding: int = 0) -> dict:
    step = width * channels + padding
    return {"encoding": encoding, "width": width, "height": height, "step": step, "data": bytes(step * height)}


RAW = [_raw("rgb8", 32, 16, 3), _raw("bgra8", 9, 7, 4, 3), _raw("uyvy", 32, 16, 2), _raw("yuv422_yuy2", 7, 5, 2)]
UNSIGNED = st.one_of(st.sampled_from(NUMBERS), st.integers(0, 64))


@st.composite
def raw_images(draw) -> dict:
    fields = dict(draw(st.sampled_from(RAW)))
    for name in draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        if name == "encoding":
            fields[name] = draw(st.sampled_from((*converters._TO_RGB, "mono8", "", "32FC1", "bayer_rggb8")))
        elif name == "data":
            fields[name] = draw(spoiled([fields[name]]))
        else:
            fields[name] = draw(UNSIGNED)
    return fields


# ---- sound


@st.composite
def clouds(draw, whole: list[PointCloud2]) -> PointCloud2:
    """A PointCloud2 with some of its fields replaced."""
    message = draw(st.sampled_from(whole))
    fields = [dict(name=f.name, offset=f.offset, datatype=f.datatype, count=f.count) for f in message.fields]
    given = {"width": message.width, "height": message.height, "point_step": message.point_step,
             "is_bigendian": message.is_bigendian, "data": bytes(message.data)}  # fmt: skip
    for name in draw(st.lists(st.sampled_from([*sorted(given), "fields"]), min_size=1, max_size=3)):
        if name == "data":
            given[name] = draw(spoiled([given[name]]))
        elif name == "is_bigendian":
            given[name] = draw(st.booleans())
        elif name != "fields":
            given[name] = draw(UNSIGNED)
        elif fields:
            field = draw(st.sampled_from(fields))
            field[draw(st.sampled_from(("offset", "count")))] = draw(UNSIGNED)
            field["datatype"] = draw(st.integers(0, 9))
            field["name"] = draw(st.sampled_from(("t", "sample", "x", "id", "", "\0", field["name"])))
    return PointCloud2(header=HEADER, fields=[PointField(**field) for field in fields], **given)


def hear(samples: np.ndarray, rate: int) -> None:
    """What audio_topic does with the sound of a message."""
    assert samples.dtype == np.float32 and np.isfinite(samples).all()
    buffer = AudioBuffer(rate)
    buffer.write(samples, 5.0)
    buffer.read(5.0, 2.0)


def use_cloud(message: PointCloud2) -> None:
    hear(*converters.cloud_to_sound(message))


def _sound_clouds() -> list[PointCloud2]:
    return [converters.sound_to_cloud(media.tone(0.05, rate), rate, HEADER) for rate in (16000, 48000)]


SAMPLE_FORMATS = ("S8", "S16LE", "S32LE", "F32LE", "S24LE", "")


@st.composite
def audio_common(draw) -> tuple[str, SimpleNamespace, bytes]:
    """What audio_common_msgs would carry. The packages are not in the ROS wheels: these are objects of their form."""
    rate, channels = draw(st.one_of(UNSIGNED, st.just(16000))), draw(st.sampled_from((0, 1, 2, 3, 255)))
    kind = draw(st.sampled_from(("stamped", "data")))
    data = draw(spoiled([media.tone(0.01, 16000).tobytes(), bytes(64)]))
    info = SimpleNamespace(rate=rate, sample_rate=rate, channels=channels,
                           coding_format=draw(st.sampled_from(("wave", "mp3", ""))),
                           sample_format=draw(st.sampled_from(SAMPLE_FORMATS)))  # fmt: skip
    return kind, info, data


def use_audio_common(given) -> None:
    kind, info, data = given
    if kind == "data":
        hear(*converters.audio_data_to_sound(data, info))
        return
    arrays = {f"{name}_data": [] for name in ("float32", "int32", "int16", "int8", "uint8")}
    filled = ("float32_data", "int16_data", "uint8_data")[len(data) % 3]
    arrays[filled] = np.frombuffer(data[: len(data) // 4 * 4], "<f4")
    audio = SimpleNamespace(info=info, audio_data=SimpleNamespace(**arrays))
    hear(*converters.audio_stamped_to_sound(SimpleNamespace(audio=audio)))


def use_microphone(data: bytes) -> None:
    for block in BlockReader().feed(data):
        if block.kind == SOUND:
            np.frombuffer(block.payload, "<f4")
        else:
            block.said()


SOUND_BLOCK, SAID_BLOCK = Block(SOUND, 16000, 5.0, 0, bytes(64)), Block(SAID, 16000, 5.0, 0, b'{"opened": "x"}')
BLOCKS = [SOUND_BLOCK.encode() * 3, SAID_BLOCK.encode() + SOUND_BLOCK.encode()]


# ---- files


def _file(suffix: str, codec: str, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=suffix) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = (media.tone(0.2, rate) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate,
                                      frame_size=stream.codec_context.frame_size or 0)  # fmt: skip
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return file.getvalue()


class Files:
    """Entry points that read files: the mutated bytes are written to `path` first."""

    def __init__(self, folder: Path):
        self.path = folder / "file"
        sound = media.tone(0.4, 16000)
        video = media.write_mp4(folder / "v.mp4", media.noise_images(4, 64, 32), sound=sound, rate=16000)
        self.sounds = [_file("wav", "pcm_s16le"), _file("flac", "flac"), _file("adts", "aac"), _file("au", "pcm_s16be"),
                       video.read_bytes()]  # fmt: skip
        self.videos = [video.read_bytes()]
        self.pictures = _pictures()

    def sound(self, data: bytes) -> None:
        self.path.write_bytes(data)
        read_audio(self.path)
        assert SoundFile(self.path).sample_rate > 0

    def video(self, data: bytes) -> None:
        self.path.write_bytes(data)
        for _, image in VideoFile(self.path):
            assert image.ndim == 3

    def noise_profile(self, text: str) -> None:
        self.path.write_text(text, errors="replace")
        profile = NoiseProfile.load(self.path)
        assert profile.stands_out(np.ones((features.N_MELS, 201), np.float32)).shape == (ROWS, 13)

    def picture(self, data: bytes) -> None:
        self.path.write_bytes(data)
        assert read_image(self.path).ndim == 3


# ---- JSON


def use_manifest(text: str) -> None:
    manifest = parse_manifest(text.encode(errors="replace"), Path("manifest.json"))
    assert np.asarray(manifest["prototypes"], np.float32).shape == (len(manifest["labels"]), manifest["dimensions"])


def _scene() -> Localization:
    map_ = np.linspace(0, 1, 128, dtype=np.float32).reshape(8, 16)
    sources = [
        Source(azimuth, 0.1, 0.2, 0.9, "dog", 3, np.zeros(1), map_, identity, "active", 1.0)
        for identity, azimuth in ((1, 0.5), (2, -1.0))
    ]
    return Localization(tuple(sources), map_, (Unseen("siren", 5, 0.7, np.zeros(1)),), True, 2.0)


WHOLE_SCENE = _scene()
SCENE_TEXT = converters.scene_to_string(WHOLE_SCENE, HEADER).data
SCENE_CLOUD = converters.scene_to_sources(WHOLE_SCENE, HEADER)
SCENE_MAP = {"encoding": "32FC1", "width": 16, "height": 8, "step": 64, "data": WHOLE_SCENE.map.tobytes()}
PICTURE = np.zeros((32, 64, 3), np.uint8)


@st.composite
def scenes(draw) -> tuple[str, PointCloud2, dict]:
    """`~/scene`, `~/sources` and `~/map` as the overlay gets them; one or two of them spoiled."""
    text, cloud, map_ = SCENE_TEXT, SCENE_CLOUD, dict(SCENE_MAP)
    spoil = draw(st.sampled_from(("text", "text", "cloud", "map", "both")))
    if spoil in ("text", "both"):
        text = draw(spoiled_json([json.loads(SCENE_TEXT)]))
    if spoil in ("cloud", "both"):
        cloud = draw(clouds([cloud]))
    if spoil == "map":
        map_["data"] = draw(spoiled([map_["data"]]))
        map_["width"], map_["height"] = draw(st.sampled_from(((16, 8), (0, 0), (128, 1), (2**31, 2))))
    return text, cloud, map_


def use_scene(given) -> None:
    text, cloud, map_ = given
    message = String(data=text)
    converters.string_stamp(message)
    draw_picture(PICTURE, converters.scene_from_messages(message, cloud, Image(**map_)))


def use_line(text: str) -> None:
    line = read_scene(text)
    assert all(-180 <= source["azimuth_deg"] <= 180 for source in line["sources"])


# ---- parameters

_VALUES = {
    bool: st.booleans(),
    int: st.one_of(st.sampled_from([*NUMBERS, -1, -(2**63), 2**63 - 1]), st.integers(-100, 5000)),
    float: st.one_of(st.sampled_from([*FLOATS, -float("inf")]), st.floats(), st.floats(-400, 400)),
    str: st.one_of(st.text(max_size=20), st.sampled_from(("topic", "; rm -rf /", "$(id)", "../../etc/passwd", "\0"))),
}


@st.composite
def settings_of_the_node(draw) -> dict:
    """Values of the right type (rclpy refuses others by itself) for a few parameters of the localizer."""
    table = {parameter.name: parameter for parameter in parameters.LOCALIZER}
    values = {}
    for name in draw(st.lists(st.sampled_from(sorted(table)), min_size=1, max_size=6, unique=True)):
        parameter = table[name]
        if isinstance(parameter.default, list):
            values[parameter.name] = draw(st.lists(_VALUES[type(parameter.default[0])], max_size=50))
        else:
            values[parameter.name] = draw(_VALUES[type(parameter.default)])
    return values


def use_settings(changed: dict) -> None:
    table = {parameter.name: parameter for parameter in parameters.LOCALIZER}
    refusals = [text for name, value in changed.items() if (text := table[name].refusal(value))]
    if refusals:
        raise ValueError("; ".join(refusals))
    values = {name: parameter.default for name, parameter in table.items()} | changed
    TrackingConfig(**{name: values[name] for name in parameters.TRACKING})
    layout = ViewLayout(tuple(values["view_azimuths_deg"]), values["view_elevation_deg"], values["view_fov_deg"],
                        values["view_vertical_fov_deg"], values["view_projection"])  # fmt: skip
    assert 1 <= len(layout) <= 36 and layout.view_shape(288)[0] >= 32


def entry_points(folder: Path) -> list[EntryPoint]:
    """All of them; files are written into `folder`."""
    pictures, files = _pictures(), Files(folder)
    compressed = st.tuples(spoiled(pictures), st.sampled_from((None, 32, 1267)))
    manifest = (shipped_models() / "manifest.json").read_text()
    small = json.loads(manifest) | {"labels": ["dog", "cat"], "prototypes": [[0.5, 0.1]] * 2, "dimensions": 2,
                                    "made_by": {"dog": ["cat"]}}  # fmt: skip
    line = json.loads(SCENE_TEXT)
    profile = {"format": 1, "power": [1e-3] * features.N_MELS, "spread_db": [0.5] * ROWS}
    whole = (SCENE_TEXT, SCENE_CLOUD, SCENE_MAP)
    info = SimpleNamespace(rate=16000, sample_rate=16000, channels=1, coding_format="wave", sample_format="F32LE")
    sound = _sound_clouds()
    return [
        EntryPoint("compressed image", compressed, use_compressed, [(data, None) for data in pictures], 0.16),
        EntryPoint("raw image", raw_images(), use_raw, RAW[:3], 0.08),
        EntryPoint("sound, PointCloud2", clouds(sound), use_cloud, sound, 0.12),
        EntryPoint("sound, audio_common", audio_common(), use_audio_common, [("data", info, bytes(64))], 0.08),
        EntryPoint("microphone process", spoiled(BLOCKS), use_microphone, BLOCKS, 0.04),
        EntryPoint("model manifest", spoiled_json([small]), use_manifest, [manifest, json.dumps(small)], 0.1),
        EntryPoint("scene messages", scenes(), use_scene, [whole], 0.12),
        EntryPoint("line of sources.jsonl", spoiled_json([line]), use_line, [SCENE_TEXT], 0.08),
        EntryPoint("noise profile", spoiled_json([profile]), files.noise_profile, [json.dumps(profile)], 0.04),
        EntryPoint("parameters", settings_of_the_node(), use_settings, [{}, {"rate": 5.0}], 0.1),
        EntryPoint("sound file", spoiled(files.sounds), files.sound, files.sounds, 0.04),
        EntryPoint("video file", spoiled(files.videos), files.video, files.videos, 0.02),
        EntryPoint("picture file", spoiled(files.pictures), files.picture, files.pictures, 0.02),
    ]
