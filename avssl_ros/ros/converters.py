"""Messages to arrays and back: pure functions, one small one for each input and output.

Arrays follow the library: RGB uint8 (H, W, 3), mono float32 sound, radians by REP-103. A message that cannot be read
raises ValueError, naming what was got and what is wanted.

Sound in stock messages. ROS 2 itself has no audio type, so beside both `audio_common_msgs` packages the topic `audio`
may carry sensor_msgs/PointCloud2, one point a sample, as LiDAR drivers stamp their points: `header.stamp` is the
capture time of the first sample; field `t` (uint32) the nanoseconds since then, from which the rate follows; field
`sample` (float32) the mono sample in [-1, 1]. `sound_to_cloud` writes it.
"""

from __future__ import annotations

import array
import json
import math

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, PoseStamped, Quaternion, TransformStamped, Vector3
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header, String
from visualization_msgs.msg import Marker, MarkerArray

from avssl_ros.features import HIGHEST_RATE, LOWEST_RATE
from avssl_ros.geometry import (
    angle_between,
    direction_to_vector,
    perspective_pixel_to_direction,
    pixel_to_direction,
)
from avssl_ros.json_input import is_number, parse_object
from avssl_ros.overlay import source_color
from avssl_ros.scene import MAX_LINE, Event, Localization, Source, Unseen, read_scene
from avssl_ros.video_input import MAX_PIXELS, decode_picture

SOURCE_DTYPE = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "intensity")]
    + [("id", "<i4"), ("class_id", "<i4")]
    + [(name, "<f4") for name in ("azimuth", "elevation", "extent")]
    + [("state", "u1")]
)
SOUND_DTYPE = np.dtype([("t", "<u4"), ("sample", "<f4")])
STATES = {"onset": 1, "active": 2}

MAX_SAMPLE = 1e6  # far above full scale: what is larger is no sound, and its square no float32
MAX_SHARED_CELLS = 1 << 24  # of all sources' parts of the map together: 64 MB
MARKER_LENGTH = 1.0  # metres: the direction is known, the distance is not
MARKER_LIFETIME = Duration(sec=2)  # a viewer drops the arrow by itself if the node is killed

_POINT_TYPES = {
    "i1": PointField.INT8, "u1": PointField.UINT8, "i2": PointField.INT16, "u2": PointField.UINT16,
    "i4": PointField.INT32, "u4": PointField.UINT32, "f4": PointField.FLOAT32, "f8": PointField.FLOAT64,
}  # fmt: skip
_TO_RGB = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUYV),
}


# ---- time


def stamp_to_seconds(stamp: Time) -> float:
    return stamp.sec + stamp.nanosec * 1e-9


def seconds_to_stamp(seconds: float) -> Time:
    nanoseconds = round(seconds * 1e9)
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


# ---- images


def message_to_rgb(message: CompressedImage | Image, enough: int | None = None) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a camera message of either type. ValueError where it is broken or of another kind.

    Args:
        enough: pixels across that will do, as of `decode_picture`; of compressed images only.
    """
    return _decompress(message, enough) if isinstance(message, CompressedImage) else _unpack(message)


def _decompress(message: CompressedImage, enough: int | None) -> np.ndarray:
    data = bytes(message.data)
    if not data:
        raise ValueError("the compressed image is empty (0 bytes)")
    # libjpeg fills a cut-off picture with grey and only mutters, so the end marker is looked for.
    if data[:2] == b"\xff\xd8" and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError(f"the JPEG image of {len(data)} bytes is cut off: it has no end marker")
    return decode_picture(data, enough)


def _unpack(message: Image) -> np.ndarray:
    if message.encoding not in _TO_RGB:
        raise ValueError(f"image encoding '{message.encoding}' is not supported, wanted one of {', '.join(_TO_RGB)}")
    if message.height == 0 or message.width == 0:
        raise ValueError(f"the image has no pixels: {message.width} x {message.height}")
    if message.height * message.width > MAX_PIXELS:
        raise ValueError(f"the image of {message.width} x {message.height} is too large, most are {MAX_PIXELS} pixels")
    channels, code = _TO_RGB[message.encoding]
    row = message.width * channels
    if message.step < row or len(message.data) != message.step * message.height:
        raise ValueError(
            f"the image of {message.width} x {message.height} '{message.encoding}' has {len(message.data)} bytes and "
            f"step {message.step}, wanted step >= {row} and step x height bytes"
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    image = np.ascontiguousarray(rows[:, :row]).reshape(message.height, message.width, channels)
    try:
        return image if code is None else cv2.cvtColor(image, code)
    except cv2.error as error:  # an odd width, which YUV 4:2:2 cannot have
        size = f"{message.width} x {message.height}"
        raise ValueError(f"the image of {size} '{message.encoding}' cannot be converted: {error.err}") from error


def rgb_to_compressed(image: np.ndarray, header: Header, quality: int) -> CompressedImage:
    """JPEG message of RGB uint8 (H, W, 3)."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return CompressedImage(header=header, format="jpeg", data=_bytes(data))


def map_to_image(map_: np.ndarray, header: Header) -> Image:
    """32FC1 message of the map, float32 (h, w)."""
    data = np.ascontiguousarray(map_, "<f4")
    height, width = data.shape
    return Image(header=header, height=height, width=width, encoding="32FC1", step=4 * width, data=_bytes(data))


def image_to_map(message: Image) -> np.ndarray:
    """The map, float32 (h, w), of a 32FC1 message."""
    if message.encoding != "32FC1" or len(message.data) != 4 * message.height * message.width:
        raise ValueError(
            f"expected a 32FC1 map without padding, got '{message.encoding}', {message.width} x {message.height}, "
            f"{len(message.data)} bytes"
        )
    if not message.data:
        raise ValueError(f"the map has no cells: {message.width} x {message.height}")
    return np.frombuffer(message.data, "<f4").reshape(message.height, message.width)


# ---- sound


def sound_to_cloud(samples: np.ndarray, sample_rate: float, header: Header) -> PointCloud2:
    """Mono float32 (n,) as stock message (see the top of this file); `header.stamp` is of the first sample.

    Raises ValueError for more than 4 s, as `t` counts to 4.29 s.
    """
    if len(samples) > 4 * sample_rate:
        raise ValueError(f"a message carries at most 4 s of sound, got {len(samples) / sample_rate:.2f} s; send blocks")
    records = np.empty(len(samples), SOUND_DTYPE)
    records["t"] = np.round(np.arange(len(samples)) * (1e9 / sample_rate))
    records["sample"] = samples
    return records_to_cloud(records, header)


def cloud_to_sound(message: PointCloud2) -> tuple[np.ndarray, int]:
    """Samples float32 (n,) and rate in Hz of what `sound_to_cloud` wrote; at least 2 samples."""
    records = cloud_to_records(message)
    missing = [name for name in SOUND_DTYPE.names if name not in (records.dtype.names or ())]
    if missing:
        raise ValueError(f"sound needs the fields 't' and 'sample', got {', '.join(records.dtype.names or ['none'])}")
    if records.dtype["t"].kind not in "iu" or records.dtype["sample"].kind not in "fiu":
        raise ValueError(f"sound needs whole nanoseconds 't' and a number 'sample', got {records.dtype.descr}")
    span = int(records["t"][-1]) - int(records["t"][0]) if len(records) > 1 else 0
    if span <= 0:
        raise ValueError(f"the sound has {len(records)} samples over {span} ns; its rate cannot be told")
    return _as_samples(records["sample"]), _checked_rate((len(records) - 1) * 1e9 / span)


def audio_stamped_to_sound(message) -> tuple[np.ndarray, int]:
    """Samples and rate of mgonzs13's audio_common_msgs/AudioStamped: the mean of its channels."""
    info, data = message.audio.info, message.audio.audio_data
    full_scale = {"float32": 1.0, "int32": 2.0**31, "int16": 2.0**15, "int8": 2.0**7, "uint8": 2.0**7}
    for name, scale in full_scale.items():
        samples = np.asarray(getattr(data, f"{name}_data"), np.float32)
        if samples.size:
            silence = 128.0 if name == "uint8" else 0.0
            with np.errstate(invalid="ignore"):
                samples = (samples - silence) / scale
            return _mean_of_channels(samples, info.channels), _checked_rate(info.rate)
    raise ValueError("the AudioStamped message has no samples")


def audio_data_to_sound(data, info) -> tuple[np.ndarray, int]:
    """Samples and rate of ros-drivers' audio_common_msgs/AudioData bytes, described by its AudioInfo.

    Only uncompressed sound: `coding_format` "wave".
    """
    formats = {"S8": ("i1", 2.0**7), "S16LE": ("<i2", 2.0**15), "S32LE": ("<i4", 2.0**31), "F32LE": ("<f4", 1.0)}
    if info.coding_format.lower() != "wave" or info.sample_format.upper() not in formats:
        raise ValueError(
            f"sound coded as '{info.coding_format}', samples '{info.sample_format}' cannot be read; start "
            f"audio_capture with format:=wave and sample_format one of {', '.join(formats)}"
        )
    dtype, scale = formats[info.sample_format.upper()]
    raw = bytes(data)
    if not raw or len(raw) % (np.dtype(dtype).itemsize * max(1, info.channels)):
        raise ValueError(f"{len(raw)} bytes are no whole {info.sample_format} samples of {info.channels} channels")
    samples = np.frombuffer(raw, dtype).astype(np.float32) / np.float32(scale)
    return _mean_of_channels(samples, info.channels), _checked_rate(info.sample_rate)


def _mean_of_channels(interleaved: np.ndarray, channels: int) -> np.ndarray:
    if channels < 1 or interleaved.size % channels:
        raise ValueError(f"{interleaved.size} samples do not divide into {channels} channels")
    with np.errstate(over="ignore", invalid="ignore"):
        return _as_samples(interleaved.reshape(-1, channels).mean(axis=1))


def _as_samples(values: np.ndarray) -> np.ndarray:
    """float32 (n,), if all are finite numbers as large as sound may be; ValueError otherwise."""
    with np.errstate(over="ignore", invalid="ignore"):
        samples = values.astype(np.float32)
    if not (np.abs(samples) <= MAX_SAMPLE).all():  # NaN is not either
        raise ValueError(f"its samples are not all finite numbers within {MAX_SAMPLE:g}; sound is in [-1, 1]")
    return samples


def _checked_rate(rate: float) -> int:
    """Hz as a whole number, if a microphone may have it: a buffer of some seconds is made for it."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"the sound states a rate of {rate:g} Hz, wanted {LOWEST_RATE} to {HIGHEST_RATE}")
    return round(rate)


# ---- results


def scene_to_sources(scene: Localization, header: Header) -> PointCloud2:
    """One point a source (see SOURCE_DTYPE): a unit vector, intensity the confidence, state as in STATES."""
    records = np.zeros(len(scene.sources), SOURCE_DTYPE)
    for record, source in zip(records, scene.sources, strict=True):
        record["x"], record["y"], record["z"] = direction_to_vector(source.azimuth, source.elevation)
        record["intensity"] = source.confidence
        record["id"] = -1 if source.id is None else source.id
        record["class_id"] = source.class_id
        record["azimuth"], record["elevation"] = source.azimuth, source.elevation
        record["extent"] = source.extent
        record["state"] = STATES.get(source.state, 0)
    return records_to_cloud(records, header)


def scene_to_direction(scene: Localization, header: Header) -> PoseStamped | None:
    """Pose at the origin whose +x points at the strongest source; None where nothing sounds."""
    if not scene.sources:
        return None
    message = PoseStamped(header=header)
    message.pose.orientation = _orientation(scene.sources[0])
    return message


def _orientation(source: Source) -> Quaternion:
    """The rotation whose +x points at the source."""
    yaw, pitch = source.azimuth / 2, -source.elevation / 2  # half angles; y is left, so up is -pitch
    return Quaternion(
        w=math.cos(yaw) * math.cos(pitch),
        x=-math.sin(yaw) * math.sin(pitch),
        y=math.cos(yaw) * math.sin(pitch),
        z=math.sin(yaw) * math.cos(pitch),
    )


def scene_to_transforms(scene: Localization, header: Header, namespace: str = "/") -> list[TransformStamped]:
    """A frame `source_<id>` for each source: one metre towards it, as its distance is not known, +x pointing on.

    namespace: of the node, before the frame's name: all of a robot's frames are in one tree.
    """
    prefix = f"{namespace.strip('/')}/".lstrip("/")
    transforms = []
    for source in scene.sources:
        transform = TransformStamped(header=header, child_frame_id=f"{prefix}source_{source.id}")
        place = _point_towards(source, MARKER_LENGTH)
        transform.transform.translation = Vector3(x=place.x, y=place.y, z=place.z)
        transform.transform.rotation = _orientation(source)
        transforms.append(transform)
    return transforms


def event_to_string(event: Event) -> String:
    """One JSON object: event, time, id, label, angles in degrees, confidence."""
    return String(data=json.dumps(event.to_dict()))


def scene_to_string(scene: Localization, header: Header) -> String:
    """One JSON object as in `sources.jsonl`, with the exact `stamp` and the `frame_id` beside it."""
    stamp = {"sec": header.stamp.sec, "nanosec": header.stamp.nanosec}
    return String(data=json.dumps({"stamp": stamp, "frame_id": header.frame_id, **scene.to_dict()}))


def string_stamp(text: String) -> Time:
    """The stamp of a `~/scene` message, which has no header."""
    stamp = parse_object(text.data, "the scene", MAX_LINE).get("stamp")
    if not isinstance(stamp, dict):
        raise ValueError("the scene has no stamp")
    seconds, nanoseconds = stamp.get("sec"), stamp.get("nanosec")
    whole = isinstance(seconds, int) and isinstance(nanoseconds, int)
    if not (whole and is_number(seconds, -(2**31), 2**31 - 1) and is_number(nanoseconds, 0, 2**32 - 1)):
        raise ValueError(f"the scene's stamp must have whole numbers sec and nanosec, got {str(stamp)[:100]}")
    return Time(sec=seconds, nanosec=nanoseconds)


def scene_to_markers(scene: Localization, header: Header, shown: set[int]) -> MarkerArray:
    """An arrow and a text for each source, and deletions for the ids in `shown` that no longer sound."""
    markers = []
    for source in scene.sources:
        markers += [_arrow(source, header), _text(source, header)]
    for gone in sorted(shown - {source.id for source in scene.sources}):
        markers += [
            Marker(header=header, ns=namespace, id=gone, action=Marker.DELETE) for namespace in ("source", "label")
        ]
    return MarkerArray(markers=markers)


def _arrow(source: Source, header: Header) -> Marker:
    marker = Marker(header=header, ns="source", id=source.id, type=Marker.ARROW, lifetime=MARKER_LIFETIME)
    marker.points = [Point(), _point_towards(source, MARKER_LENGTH)]
    marker.scale.x, marker.scale.y, marker.scale.z = 0.03, 0.08, 0.12  # shaft and head diameter, head length
    red, green, blue = (channel / 255 for channel in source_color(source.id))  # as in the overlay
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=max(0.3, float(source.confidence)))
    marker.pose.orientation.w = 1.0
    return marker


def _text(source: Source, header: Header) -> Marker:
    marker = Marker(header=header, ns="label", id=source.id, type=Marker.TEXT_VIEW_FACING, lifetime=MARKER_LIFETIME)
    marker.pose.position = _point_towards(source, 1.15 * MARKER_LENGTH)
    marker.pose.orientation.w = 1.0
    marker.scale.z = 0.12
    marker.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    marker.text = f"{source.label} #{source.id} {source.confidence:.0%}"
    return marker


def _point_towards(source: Source, distance: float) -> Point:
    x, y, z = (float(value) for value in distance * direction_to_vector(source.azimuth, source.elevation))
    return Point(x=x, y=y, z=z)


# ---- results, read back


def scene_from_messages(
    text: String, sources: PointCloud2, map_: Image, projection: str = "equirectangular", fov_deg: float = 90.0
) -> Localization:
    """The Localization that `~/scene`, `~/sources` and `~/map` of one stamp tell of, for drawing.

    Embeddings are not published: they are empty. Only the map of all sources is, so each source gets those of its
    cells that lie nearer to it than to any other; `projection` and `fov_deg` say where the cells lie. ValueError where
    a message is broken or they do not belong together.
    """
    line = read_scene(text.data)
    described = {source["id"]: source for source in line["sources"]}
    nothing = np.zeros(0, np.float32)
    records = _source_records(sources)
    joint = image_to_map(map_)
    if not {int(identity) for identity in records["id"]} <= set(described):
        ids = records["id"][:10].tolist()
        raise ValueError(f"the sources have the ids {ids}, but the scene tells of {list(described)[:10]}")
    if len(records) * joint.size > MAX_SHARED_CELLS:
        raise ValueError(f"{len(records)} sources on a map of {joint.size} cells are more than can be drawn")
    shares = _share_map(joint, records["azimuth"], records["elevation"], projection, fov_deg)
    found = tuple(
        Source(
            azimuth=float(record["azimuth"]),
            elevation=float(record["elevation"]),
            extent=float(record["extent"]),
            confidence=float(record["intensity"]),
            label=described[int(record["id"])]["label"],
            class_id=int(record["class_id"]),
            embedding=nothing,
            map=share,
            id=int(record["id"]),
            state=next((name for name, state in STATES.items() if state == record["state"]), None),
            onset=described[int(record["id"])].get("onset"),
        )
        for record, share in zip(records, shares, strict=True)
    )
    unseen = tuple(Unseen(sound["label"], -1, sound["confidence"], nothing) for sound in line["unseen"])
    return Localization(found, joint, unseen, line["active"], stamp_to_seconds(sources.header.stamp))


def _source_records(message: PointCloud2) -> np.ndarray:
    """The points of `~/sources` (n,) with the fields of SOURCE_DTYPE, all finite."""
    records = cloud_to_records(message)
    missing = [name for name in SOURCE_DTYPE.names if name not in records.dtype.names]
    if missing:
        raise ValueError(f"sources need the fields {', '.join(SOURCE_DTYPE.names)}; {', '.join(missing)} are missing")
    checked = np.zeros(len(records), SOURCE_DTYPE)
    with np.errstate(over="ignore", invalid="ignore"):
        for name in SOURCE_DTYPE.names:
            checked[name] = records[name]
    if not all(np.isfinite(values[name]).all() for values in (records, checked) for name in SOURCE_DTYPE.names):
        raise ValueError("the sources' numbers are not all finite")
    return checked


def _share_map(joint: np.ndarray, azimuth, elevation, projection: str, fov_deg: float) -> list[np.ndarray]:
    """`joint` (h, w) divided among the directions (n,): each cell to the nearest, 0 elsewhere."""
    if len(azimuth) < 2:
        return [joint] * len(azimuth)
    height, width = joint.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    if projection == "equirectangular":
        cells = pixel_to_direction(x, y, width, height)
    else:
        cells = perspective_pixel_to_direction(x, y, width, height, fov_deg)
    least, nearest = np.full(joint.shape, np.inf), np.zeros(joint.shape, int)
    for index, direction in enumerate(zip(azimuth, elevation, strict=True)):
        angle = angle_between(*cells, *direction)
        nearest[angle < least] = index
        least = np.minimum(angle, least)
    return [np.where(nearest == index, joint, np.float32(0)) for index in range(len(azimuth))]


# ---- point clouds as structured arrays (sensor_msgs_py is not in the ROS wheels)


def records_to_cloud(records: np.ndarray, header: Header) -> PointCloud2:
    """A structured array (n,) as PointCloud2 of height 1, field by field."""
    fields = [
        PointField(name=name, offset=offset, datatype=_POINT_TYPES[dtype.str[1:]], count=1)
        for name, (dtype, offset) in ((name, records.dtype.fields[name][:2]) for name in records.dtype.names)
    ]
    return PointCloud2(
        header=header,
        height=1,
        width=len(records),
        fields=fields,
        is_bigendian=False,
        point_step=records.dtype.itemsize,
        row_step=records.nbytes,
        data=_bytes(records),
        is_dense=True,
    )


def cloud_to_records(message: PointCloud2) -> np.ndarray:
    """The points as structured array (n,) with the message's field names; fields of count 1 only."""
    types = {number: name for name, number in _POINT_TYPES.items()}
    count = message.width * message.height
    if any(field.datatype not in types or field.count > 1 for field in message.fields):
        raise ValueError("point fields must be single numbers of a type PointField names")
    if not message.fields or message.point_step == 0 or len(message.data) != count * message.point_step:
        raise ValueError(
            f"{message.width} x {message.height} points of {message.point_step} bytes and {len(message.fields)} fields "
            f"do not fit {len(message.data)} bytes"
        )
    # By hand: numpy lets an offset near 2^31 pass, and then reads beyond the buffer.
    ends = [field.offset + np.dtype(types[field.datatype]).itemsize for field in message.fields]
    if max(ends) > message.point_step:
        offsets = [(field.name, field.offset) for field in message.fields]
        raise ValueError(f"point fields must lie within the point's {message.point_step} bytes, got {offsets}")
    order = ">" if message.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [order + types[field.datatype] for field in message.fields],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(message.data, dtype, count)


def _bytes(data: np.ndarray) -> array.array:
    """What message fields take without checking every single byte."""
    return array.array("B", data.tobytes())
