"""Messages to arrays and back. No DDS: only the message classes of the ROS wheels."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from geometry_msgs.msg import Quaternion
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from avssl_ros.geometry import direction_to_vector
from avssl_ros.ros import converters
from avssl_ros.scene import Event, Localization, Source, Unseen

pytestmark = pytest.mark.ros

HEADER = Header(stamp=converters.seconds_to_stamp(1700000000.123456789), frame_id="head")
MAP = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)


def source(azimuth_deg=0.0, elevation_deg=0.0, identity=3, state="active") -> Source:
    return Source(
        np.radians(azimuth_deg), np.radians(elevation_deg), 0.2, 0.9, "dog", 5, np.zeros(4), MAP, identity, state, 1.0
    )


def scene(*sources: Source) -> Localization:
    unseen = (Unseen("siren", 8, 0.75, np.zeros(4)),)
    return Localization(sources, MAP, unseen, True, converters.stamp_to_seconds(HEADER.stamp))


def rotate_x_axis(q: Quaternion) -> np.ndarray:
    """The first column of the rotation matrix of a unit quaternion."""
    return np.array([1 - 2 * (q.y**2 + q.z**2), 2 * (q.x * q.y + q.z * q.w), 2 * (q.x * q.z - q.y * q.w)])


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (90, 0), (-90, 20), (179.9, -45), (-135, 80), (10, -90)])
def test_direction_points_its_x_axis_at_the_source(azimuth, elevation):
    message = converters.scene_to_direction(scene(source(azimuth, elevation)), HEADER)
    expected = direction_to_vector(np.radians(azimuth), np.radians(elevation))
    np.testing.assert_allclose(rotate_x_axis(message.pose.orientation), expected, atol=1e-9)
    assert message.header == HEADER


def test_there_is_no_direction_when_nothing_sounds():
    assert converters.scene_to_direction(scene(), HEADER) is None


def test_sources_are_points_left_is_plus_y_up_is_plus_z():
    message = converters.scene_to_sources(scene(source(90, 0, 3, "onset"), source(0, 90, 4)), HEADER)
    records = converters.cloud_to_records(message)
    assert [field.name for field in message.fields] == list(converters.SOURCE_DTYPE.names)
    np.testing.assert_allclose([list(r) for r in records[["x", "y", "z"]]], [[0, 1, 0], [0, 0, 1]], atol=1e-6)
    assert records["id"].tolist() == [3, 4] and records["class_id"].tolist() == [5, 5]
    assert records["state"].tolist() == [converters.STATES["onset"], converters.STATES["active"]]
    np.testing.assert_allclose(records["intensity"], 0.9)


def test_no_sources_are_a_cloud_without_points():
    message = converters.scene_to_sources(scene(), HEADER)
    assert (message.width, len(message.data), message.header) == (0, 0, HEADER)
    assert len(converters.cloud_to_records(message)) == 0


def test_drawing_gets_back_what_was_localized():
    original = scene(source(-170, 12), source(33, -4, 7, "onset"))
    restored = converters.scene_from_messages(
        converters.scene_to_string(original, HEADER),
        converters.scene_to_sources(original, HEADER),
        converters.map_to_image(original.map, HEADER),
    )
    assert restored.to_dict() == original.to_dict()
    assert [s.state for s in restored.sources] == ["active", "onset"]
    np.testing.assert_array_equal(restored.map, MAP)


def test_each_restored_source_gets_its_own_part_of_the_map():
    joint = np.zeros((32, 64), np.float32)
    joint[16, 16] = joint[16, 48] = 0.8  # left and right
    original = Localization((source(90, 0, 1), source(-90, 0, 2)), joint, (), True, 0.0)
    restored = converters.scene_from_messages(
        converters.scene_to_string(original, HEADER),
        converters.scene_to_sources(original, HEADER),
        converters.map_to_image(joint, HEADER),
    )
    peaks = [np.argwhere(restored_source.map > 0).tolist() for restored_source in restored.sources]
    assert peaks == [[[16, 16]], [[16, 48]]]


@pytest.mark.parametrize("width, height", [(0, 0), (0, 8), (2**31, 0)])
def test_a_map_without_cells_is_refused(width, height):  # the overlay died of it (found by tests/fuzz)
    empty = Image(encoding="32FC1", width=width, height=height)
    with pytest.raises(ValueError, match="no cells"):
        converters.image_to_map(empty)


def test_scene_text_carries_the_exact_stamp():
    message = converters.scene_to_string(scene(), HEADER)
    assert converters.string_stamp(message) == HEADER.stamp
    assert json.loads(message.data)["unseen"] == [{"label": "siren", "speech": False, "confidence": 0.75}]


def test_event_text_has_the_documented_fields():
    event = json.loads(converters.event_to_string(Event("offset", 12.5, source(-90, 5))).data)
    assert (event["event"], event["time"], event["id"], event["label"]) == ("offset", 12.5, 3, "dog")
    assert (event["azimuth_deg"], event["elevation_deg"], event["confidence"]) == (-90.0, 5.0, 0.9)


def test_markers_appear_with_a_source_and_are_deleted_after_it():
    shown = converters.scene_to_markers(scene(source(90, 0, 3)), HEADER, {2, 3}).markers
    added = {(m.ns, m.id) for m in shown if m.action == Marker.ADD}
    deleted = {(m.ns, m.id) for m in shown if m.action == Marker.DELETE}
    assert added == {("source", 3), ("label", 3)} and deleted == {("source", 2), ("label", 2)}
    arrow = next(m for m in shown if m.ns == "source" and m.action == Marker.ADD)
    assert (round(arrow.points[1].x, 6), round(arrow.points[1].y, 6)) == (0.0, converters.MARKER_LENGTH)
    assert arrow.lifetime.sec > 0, "a viewer must drop arrows of a node that was killed"


# ---- images


def picture() -> np.ndarray:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :, 0], image[:, :, 1], image[:, 3:, 2] = 200, 100, 50
    return image


@pytest.mark.parametrize(
    "encoding, code",
    [("rgb8", None), ("bgr8", cv2.COLOR_RGB2BGR), ("rgba8", cv2.COLOR_RGB2RGBA), ("bgra8", cv2.COLOR_RGB2BGRA)],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_raw_images_are_read_with_any_channel_order_and_row_padding(encoding, code, padding):
    packed = picture() if code is None else cv2.cvtColor(picture(), code)
    rows = np.pad(packed.reshape(4, -1), ((0, 0), (0, padding)))
    message = Image(height=4, width=6, encoding=encoding, step=rows.shape[1], data=rows.tobytes())
    np.testing.assert_array_equal(converters.message_to_rgb(message), picture())


def test_compressed_images_are_read_as_rgb():
    message = converters.rgb_to_compressed(np.full((32, 64, 3), (200, 30, 90), np.uint8), HEADER, 95)
    image = converters.message_to_rgb(message)
    assert image.shape == (32, 64, 3) and np.abs(image.mean((0, 1)) - (200, 30, 90)).max() < 4


@pytest.mark.parametrize("width, wanted", [(500, 500), (600, 300), (1200, 300), (3000, 375), (200, 200)])
def test_images_larger_than_is_enough_come_smaller_but_never_below_it(width, wanted):
    left_half_red = np.zeros((64, width, 3), np.uint8)
    left_half_red[:, : width // 2, 0] = 200
    message = converters.rgb_to_compressed(left_half_red, HEADER, 95)
    image = converters.message_to_rgb(message, enough=300)
    assert image.shape[1] == wanted
    assert np.abs(image[:, : wanted // 2 - 20].astype(int) - (200, 0, 0)).max() < 10
    assert image[:, wanted // 2 + 20 :].max() < 10


JPEG = bytes(converters.rgb_to_compressed(np.zeros((32, 64, 3), np.uint8), HEADER, 90).data)


@pytest.mark.parametrize(
    "message, text",
    [
        (CompressedImage(format="jpeg"), "0 bytes"),
        (CompressedImage(format="jpeg", data=JPEG[:-40]), "cut off"),
        (CompressedImage(format="jpeg", data=b"no picture at all"), "cannot be decoded"),
        (Image(encoding="mono8", height=2, width=2, step=2, data=bytes(4)), "mono8.*wanted one of rgb8"),
        (Image(encoding="rgb8", height=0, width=0), "no pixels"),
        (Image(encoding="rgb8", height=2, width=2, step=6, data=bytes(5)), "5 bytes and step 6"),
        (Image(encoding="rgb8", height=2, width=2, step=1, data=bytes(2)), "wanted step >= 6"),
    ],
)
def test_broken_images_are_refused_with_a_reason(message, text):
    for enough in (None, 8):
        with pytest.raises(ValueError, match=text):
            converters.message_to_rgb(message, enough)


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded():
    size = JPEG.index(b"\xff\xc0") + 5  # height and width in the frame header
    claim = JPEG[:size] + (40000).to_bytes(2, "big") * 2 + JPEG[size + 4 :]
    with pytest.raises(ValueError, match="too large"):
        converters.message_to_rgb(CompressedImage(format="jpeg", data=claim), 1000)


# ---- sound


@pytest.mark.parametrize("offset", [5, 2**31 - 1, 2**32 - 1])
def test_a_point_field_beyond_its_point_is_refused(offset):
    message = converters.sound_to_cloud(np.zeros(100, np.float32), 16000, HEADER)
    message.fields[1].offset = offset  # numpy alone crashes the process at the second (found by tests/fuzz)
    with pytest.raises(ValueError, match="within the point's 8 bytes"):
        converters.cloud_to_sound(message)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 96000])
def test_sound_travels_in_a_stock_message_with_its_exact_rate(rate):
    samples = np.sin(np.arange(rate // 20)).astype(np.float32)
    restored, restored_rate = converters.cloud_to_sound(converters.sound_to_cloud(samples, rate, HEADER))
    assert restored_rate == rate
    np.testing.assert_array_equal(restored, samples)


@pytest.mark.parametrize(
    "message, text",
    [
        (PointCloud2(), "do not fit|fields"),
        (converters.sound_to_cloud(np.zeros(1, np.float32), 16000, HEADER), "rate cannot be told"),
        (converters.scene_to_sources(scene(source()), HEADER), "fields 't' and 'sample', got x, y"),
    ],
)
def test_clouds_that_are_no_sound_are_refused(message, text):
    with pytest.raises(ValueError, match=text):
        converters.cloud_to_sound(message)


def test_a_cloud_with_less_data_than_it_says_is_refused():
    message = converters.sound_to_cloud(np.zeros(100, np.float32), 16000, HEADER)
    message.data = message.data[:-8]
    with pytest.raises(ValueError, match="do not fit 792 bytes"):
        converters.cloud_to_sound(message)


def test_sound_longer_than_the_message_can_time_is_refused():
    with pytest.raises(ValueError, match="at most 4 s"):
        converters.sound_to_cloud(np.zeros(80001, np.float32), 16000, HEADER)


def audio_stamped(channels=1, rate=16000, **data):
    """Stands in for audio_common_msgs/AudioStamped (mgonzs13), which no wheel brings."""
    names = ("float32_data", "int32_data", "int16_data", "int8_data", "uint8_data")
    arrays = SimpleNamespace(**{name: data.get(name, []) for name in names})
    return SimpleNamespace(audio=SimpleNamespace(audio_data=arrays, info=SimpleNamespace(channels=channels, rate=rate)))


@pytest.mark.parametrize(
    "message",
    [
        audio_stamped(float32_data=[0.5, -0.5]),
        audio_stamped(int16_data=[16384, -16384]),
        audio_stamped(uint8_data=[192, 64]),
        audio_stamped(channels=2, int16_data=[32767, 1, -32767, -1]),
    ],
)
def test_audio_stamped_is_read_in_every_sample_type(message):
    samples, rate = converters.audio_stamped_to_sound(message)
    np.testing.assert_allclose(samples, [0.5, -0.5], atol=1e-4)
    assert rate == 16000 and samples.dtype == np.float32


@pytest.mark.parametrize("message", [audio_stamped(), audio_stamped(channels=2, int16_data=[1, 2, 3])])
def test_audio_stamped_without_whole_samples_is_refused(message):
    with pytest.raises(ValueError, match="samples"):
        converters.audio_stamped_to_sound(message)


def audio_info(**changes):
    """Stands in for audio_common_msgs/AudioInfo (ros-drivers)."""
    return SimpleNamespace(
        **{"channels": 1, "sample_rate": 44100, "sample_format": "S16LE", "coding_format": "wave", **changes}
    )


def test_audio_data_bytes_are_read_as_its_info_says():
    data = np.array([16384, 16384, -16384, -16384], "<i2").tobytes()
    samples, rate = converters.audio_data_to_sound(data, audio_info(channels=2))
    np.testing.assert_allclose(samples, [0.5, -0.5])
    assert rate == 44100


@pytest.mark.parametrize("change", [{"coding_format": "mp3"}, {"sample_format": "U24BE"}, {"channels": 3}])
def test_audio_data_in_a_form_that_cannot_be_read_is_refused(change):
    with pytest.raises(ValueError):
        converters.audio_data_to_sound(bytes(4), audio_info(**change))
