"""The library as a user calls it, on the shipped model and a scene whose truth is known (the demo's first seconds)."""

import json

import cv2
import numpy as np
import pytest

from avssl_ros import Localizer, features, fusion
from avssl_ros.audio_input import read_audio
from avssl_ros.geometry import ViewLayout, angle_between, direction_to_pixel
from avssl_ros.localizer import CloserLook, ViewsInTurn, closer_azimuths
from avssl_ros.paths import demo_scene
from avssl_ros.scene import Localization, Source, Unseen
from avssl_ros.video_input import VideoFile

RATE = 16000


@pytest.fixture(scope="module")
def localizer():
    return Localizer(threads=2)


@pytest.fixture(scope="module")
def demo():
    """Frames by time, sound, rate and truth of the demo scene."""
    path = demo_scene() / "scene.mp4"
    truth = json.loads((demo_scene() / "scene.json").read_text())
    frames = {round(time, 3): image for time, image in VideoFile(path)}
    return frames, *read_audio(path), truth


def moment(demo, time):
    frames, sound, rate, _ = demo
    nearest = min(frames, key=lambda t: abs(t - time))
    return frames[nearest], sound[max(0, int((nearest - 2.0) * rate)) : int(nearest * rate)], rate


def first_sounding(demo):
    return min((s for s in demo[3]["sounding"]), key=lambda s: s["from"])


def noise(seconds=2.0, level=0.05):
    return (level * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)


def picture(width=640, height=320):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_known_source_is_found_where_it_is(localizer, demo):
    source = first_sounding(demo)
    scene = localizer.localize(*moment(demo, (source["from"] + source["to"]) / 2 + 0.4))
    assert scene.active and scene.sources
    best = scene.sources[0]
    truth = np.radians([source["azimuth_deg"], source["elevation_deg"]])
    assert np.degrees(angle_between(best.azimuth, best.elevation, *truth)) <= 20
    assert best.label in localizer.labels and np.linalg.norm(best.embedding) == pytest.approx(1.0, abs=1e-4)
    assert scene.map.dtype == np.float32 and 0 < scene.map.max() <= 1 and scene.map.min() >= 0
    assert scene.map.shape == best.map.shape == (128, 256)


def test_turning_the_panorama_turns_the_answer(localizer, demo):
    source = first_sounding(demo)
    image, sound, rate = moment(demo, (source["from"] + source["to"]) / 2 + 0.4)
    straight = localizer.localize(image, sound, rate).sources[0]
    for degrees in (90, 180):  # a turn by whole views shows the network the same pictures
        turned = localizer.localize(np.roll(image, -image.shape[1] * degrees // 360, axis=1), sound, rate).sources[0]
        expected = straight.azimuth + np.radians(degrees)
        assert np.degrees(angle_between(turned.azimuth, turned.elevation, expected, straight.elevation)) < 3


def test_silence_says_so_and_costs_nothing(localizer, demo):
    image, _, _ = moment(demo, 1.0)
    for level in (0.0, 1e-5):
        scene = localizer.localize(image, noise(level=level), RATE)
        assert not scene.active and scene.sources == () and scene.unseen == () and not scene.map.any()


def test_an_ordinary_image_is_one_view(localizer, demo):
    image, sound, rate = moment(demo, 1.0)
    scene = localizer.localize(image[:, 300:900], sound, rate, projection="perspective")
    height, width = scene.map.shape
    assert width / height == pytest.approx(600 / image.shape[0], rel=0.1)
    assert all(abs(np.degrees(source.azimuth)) <= 46 for source in scene.sources)


@pytest.mark.parametrize("rate", [8000, 96000])
def test_telephone_and_studio_rates_work(localizer, rate):
    scene = localizer.localize(picture(), np.tile(noise(), 12)[: rate * 2], rate)
    assert scene.active


@pytest.mark.parametrize(
    "image, text",
    [
        (np.zeros((0, 0, 3), np.uint8), "at least 32 x 32"),
        (np.zeros((320, 640), np.uint8), "RGB uint8"),
        (np.zeros((320, 640, 1), np.uint8), "RGB uint8"),
        (np.zeros((320, 640, 3), np.float32), "RGB uint8"),
        (np.zeros((320, 320, 3), np.uint8), "twice as wide as high"),
        (None, "RGB uint8"),
    ],
)
def test_a_bad_image_is_refused_with_what_is_wanted(localizer, image, text):
    with pytest.raises(ValueError, match=text):
        localizer.localize(image, noise(), RATE)


@pytest.mark.parametrize("audio", [np.zeros(0, np.float32), np.zeros(1, np.float32), np.full(RATE, np.nan, np.float32)])
def test_bad_sound_is_refused(localizer, audio):
    with pytest.raises(ValueError, match="audio"):
        localizer.localize(picture(), audio, RATE)


def test_an_unknown_projection_is_refused(localizer):
    with pytest.raises(ValueError, match="projection must be one of"):
        localizer.localize(picture(), noise(), RATE, projection="fisheye")


def test_half_a_second_of_sound_is_enough(localizer):
    assert localizer.localize(picture(), noise(0.5), RATE).active


def run(stream, demo, start, end, rate=5.0):
    scenes = [stream.process(*moment(demo, t), t) for t in np.arange(start, end, 1 / rate)]
    return scenes, [event for scene in scenes for event in scene.events]


def test_a_stream_tells_onset_and_offset(localizer, demo):
    source, following = sorted(demo[3]["sounding"], key=lambda s: s["from"])[:2]
    scenes, events = run(localizer.stream(), demo, 0.2, following["from"])
    assert events[0].kind == "onset" and events[-1].kind == "offset"
    assert source["from"] - 0.2 <= events[0].time <= source["from"] + 1.0
    assert events[-1].time <= source["to"] + 0.8
    assert any(s.sources and s.sources[0].id == events[0].source.id for s in scenes) and scenes[-1].sources == ()


@pytest.mark.parametrize("threads", [1, 2])
def test_hearing_may_begin_before_the_image_is_there(demo, threads):
    source, localizer = first_sounding(demo), Localizer(threads=threads)
    at_once, in_halves = localizer.stream(), localizer.stream()
    for time in np.arange(source["from"] + 0.5, source["to"], 0.4):
        image, sound, rate = moment(demo, time)
        heard = in_halves.hear(sound, rate)
        expected, found = at_once.process(image, sound, rate, time), in_halves.look(image, heard, time)
        assert [s.id for s in found.sources] == [s.id for s in expected.sources]
        assert np.allclose(found.map, expected.map, atol=1e-5) and found.active
    assert found.sources
    bad = in_halves.hear(np.full(RATE, np.nan, np.float32), RATE)  # said where the caller looks for it
    with pytest.raises(ValueError, match="audio"):
        in_halves.look(image, bad, time)


def test_hearing_for_images_that_never_come_is_given_up(monkeypatch):
    localizer, heard = Localizer(threads=2), []
    real = localizer.hear
    monkeypatch.setattr(localizer, "hear", lambda *arguments: (heard.append(1), real(*arguments))[1])
    stream, sound = localizer.stream(), noise()  # made once: on a busy machine each would take as long as a hearing
    begun = [stream.hear(sound, RATE) for _ in range(300)]
    assert begun[-1]() is not None
    assert len(heard) < 100


def test_a_stream_survives_bad_frames_and_jumps_of_time(localizer, demo):
    source = first_sounding(demo)
    stream = localizer.stream()
    run(stream, demo, source["from"], source["to"])
    with pytest.raises(ValueError):
        stream.process(np.zeros((3, 3), np.uint8), noise(), RATE, source["to"])
    image, sound, rate = moment(demo, source["to"])
    scene = stream.process(image, sound, rate, 0.0)  # the clock jumped back
    assert {event.kind for event in scene.events} <= {"offset"} and scene.sources == ()


def test_images_may_change_their_shape_while_tracks_last(localizer):
    """A camera that is turned upright, with one thing still in its image and another not."""
    def seen(azimuth, class_id, shape):
        drawn = np.full(shape, 0.5, np.float32)
        return Source(azimuth, 0.0, 0.2, 0.9, "dog", class_id, np.eye(8, dtype=np.float32)[class_id], drawn)

    def scene(shape, *sources):
        return Localization(sources, np.zeros(shape, np.float32), (), active=True)

    wide, high = (64, 96), (96, 64)
    given = [scene(wide, seen(-0.5, 1, wide), seen(0.5, 2, wide))] * 6 + [scene(high, seen(-0.5, 1, high)), scene(high)]
    stub = localizer.with_views()
    stub._look = lambda *_: given.pop(0)
    stream = stub.stream("perspective")
    told = [stream.process(picture(), noise(), RATE, index / 10) for index in range(8)]
    assert [len(now.sources) for now in told[-3:]] == [2, 2, 2] and told[-3].map.shape == wide
    for now in told[-2:]:
        assert {now.map.shape, *(source.map.shape for source in now.sources)} == {high}
    assert told[-2].map.max() == 0.5 and not told[-1].map.any()


def test_a_sound_out_of_view_is_named_once(localizer, monkeypatch):
    sounds = [Unseen("drums", 3, confidence, np.zeros(8), doubtful)
              for confidence, doubtful in ((0.6, False), (0.9, False), (1.0, True))]
    scene = Localization((), np.zeros((2, 4), np.float32), tuple(sounds), active=True)
    monkeypatch.setattr(localizer, "_look", lambda *_: scene)
    assert localizer.localize(picture(), noise(), RATE).unseen == (sounds[1],)


def test_thresholds_change_while_running_all_or_nothing(localizer):
    stream = localizer.stream()
    stream.configure(onset_confidence=0.7)
    with pytest.raises(ValueError, match="0 <= offset_confidence <= onset_confidence"):
        stream.configure(onset_confidence=0.1, min_on_seconds=0.0)
    assert stream.config.onset_confidence == 0.7 and stream.config.min_on_seconds == 0.2


def test_a_larger_view_gives_the_same_map_from_more_patches_and_odd_sizes_are_refused():
    image = np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)
    shipped, large = Localizer(), Localizer(view_size=384)
    assert shipped.cut(image, "equirectangular")[0].shape == (4, 192, 352, 3)
    views, surface = large.cut(image, "equirectangular")
    (drawn,) = surface.project(np.ones((1, 4 * 14 * 24), np.float32))
    assert views.shape == (4, 224, 384, 3) and surface.whole(drawn).shape == surface.shape == (128, 256)
    for wrong in (100, 32, 2048):
        with pytest.raises(ValueError, match=f"multiple of 32 from 64 to 1024 pixels, got {wrong}"):
            Localizer(view_size=wrong)


class Eyes:
    """Encoders whose embedding of a view is the view's first pixel; counts what they are shown."""

    def __init__(self):
        self.shown = []

    def visual(self, views):
        self.shown.append(len(views))
        return views[:, :1, :1, :1].astype(np.float32)


def test_views_in_turn_are_each_refreshed_once_a_round_and_all_after_silence():
    eyes = Eyes()
    see = ViewsInTurn(eyes, 1)
    seen = [see(np.full((4, 2, 2, 3), frame, np.uint8)).ravel().tolist() for frame in range(5)]
    assert seen == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 0], [1, 2, 3, 4]]
    see.forget()
    assert see(np.full((4, 2, 2, 3), 9, np.uint8)).ravel().tolist() == [9, 9, 9, 9]
    assert see(np.full((4, 2, 4, 3), 8, np.uint8)).ravel().tolist() == [8, 8, 8, 8]  # a camera that changed its size
    assert eyes.shown == [4, 1, 1, 1, 1, 4, 4]


def test_views_in_turn_find_what_all_views_find_in_a_still_picture(localizer, demo):
    source = first_sounding(demo)
    image, sound, rate = moment(demo, (source["from"] + source["to"]) / 2 + 0.4)
    told = {}
    for count in (0, 1):
        stream = localizer.stream(views_per_frame=count)
        for step in range(12):
            told[count] = stream.process(image, sound, rate, step / 10)
    (one,), (other,) = told[0].sources, told[1].sources
    assert angle_between(one.azimuth, one.elevation, other.azimuth, other.elevation) < np.radians(1)


def test_a_view_that_takes_no_turns_is_always_looked_at_anew():
    see, given = ViewsInTurn(Eyes(), 1), [np.full((5, 2, 2, 3), frame, np.uint8) for frame in range(3)]
    seen = [see(views, 1).ravel().tolist() for views in given]
    assert seen == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 2, 0, 0, 2]]
    assert see(given[2][:4]).ravel().tolist() == [1, 2, 2, 0]


@pytest.mark.parametrize("azimuth_deg", [0.0, 100.0, 180.0, -75.0])
def test_a_closer_view_shows_the_same_at_the_same_place_as_the_others(localizer, azimuth_deg):
    """Through the real views and maps, with a bright spot whose brightness stands for an embedding."""
    localizer = localizer.with_views(view_size=352)  # patches of 4.5 degrees
    azimuth, elevation = np.radians(azimuth_deg), np.radians(8.0)
    image = np.zeros((480, 960, 3), np.uint8)
    column, row = direction_to_pixel(azimuth, elevation, 960, 480)
    for shift in (-960, 0, 960):
        cv2.circle(image, (round(float(column)) + shift, round(float(row))), 12, (255, 255, 255), -1)
    look = CloserLook()
    look.aim(azimuth)
    views, surface = localizer.cut(image, "equirectangular", look.azimuths)
    alone, usual = localizer.cut(image, "equirectangular")
    assert (len(views), len(alone)) == (5, 4) and np.array_equal(views[:4], alone)
    bright = views[..., 0].reshape(5, views.shape[1] // 16, 16, -1, 16).mean(axis=(2, 4)).reshape(1, -1)
    is_closer = np.arange(bright.size) >= bright.size * 4 // 5
    for shown in (bright, bright * is_closer, bright * ~is_closer):
        maps = surface.project(shown)
        at = np.unravel_index(maps[0].argmax(), maps[0].shape)
        assert angle_between(surface.azimuth[at], surface.elevation[at], azimuth, elevation) < np.radians(3)
    without = usual.project(bright[:, : bright.size * 4 // 5])[0]
    far = angle_between(surface.azimuth, surface.elevation, azimuth, 0.0) > np.radians(50)
    assert np.array_equal(surface.project(bright)[0][far], without[far])


def test_a_stream_looks_closer_at_what_it_found_and_no_more_after_silence(localizer, demo):
    source = first_sounding(demo)
    stream, shown = localizer.stream(), []
    stream._see = lambda views, always: shown.append((len(views), always)) or localizer.encoders.visual(views)
    stream._see.forget = lambda: None
    image, sound, rate = moment(demo, (source["from"] + source["to"]) / 2 + 0.4)
    for step in range(6):
        scene = stream.process(image, sound, rate, step / 10)
    assert shown == [(4, 0)] + [(5, 1)] * 5
    (aimed,) = stream._closer.azimuths
    off = np.degrees(scene.sources[0].azimuth) - aimed
    assert abs((off + 180) % 360 - 180) <= 12
    stream.process(image, np.zeros(2 * rate, np.float32), rate, 0.6)
    assert stream._closer.azimuths == ()
    with_narrow_views = localizer.with_views(ViewLayout(fov_deg=60.0))
    assert len(with_narrow_views.cut(image, "equirectangular", (0.0,))[0]) == 4
    assert localizer.stream(look_closer=False)._closer is None


def test_closer_views_stand_apart_and_the_likeliest_come_first():
    degrees = [10.0, 30.0, -170.0, 100.0, -60.0, 60.0]  # 30 is in the view of 10, and four are enough
    assert closer_azimuths(np.radians(degrees)) == (0.0, 90.0, 180.0, 292.5)
    assert closer_azimuths(np.radians([179.0, -179.0, 0.0])) == (0.0, 180.0)  # the two nearest are one direction
    assert closer_azimuths([]) == ()


def test_a_single_image_is_looked_at_closer_where_something_may_sound(localizer, demo):
    source = first_sounding(demo)
    image, sound, rate = moment(demo, (source["from"] + source["to"]) / 2 + 0.4)
    clusters = localizer.hear(features.as_mono(sound, rate, centred=True))
    views, surface = localizer.cut(image, "equirectangular")
    first = localizer.encoders.visual(views).reshape(-1, localizer.encoders.dimensions)
    visual, closer = localizer.look_closer(image, clusters, first, surface)
    of_view = len(first) // 4
    assert len(visual) % of_view == 0 and 5 * of_view <= len(visual) <= 8 * of_view
    assert np.array_equal(visual[: len(first)], first)
    seen = fusion._seen(visual, localizer.prototypes, [[clusters[0].concepts.argmax()]])
    at = np.unravel_index(closer.project(seen)[0].argmax(), closer.azimuth.shape)
    found = localizer.localize(image, sound, rate).sources[0]
    assert angle_between(closer.azimuth[at], closer.elevation[at], found.azimuth, found.elevation) < np.radians(15)
    assert localizer.look_closer(image, [], first, surface)[0] is first  # nothing is heard
    narrow = localizer.with_views(ViewLayout(fov_deg=60.0))  # whose views are as narrow as closer ones
    views, surface = narrow.cut(image, "equirectangular")
    first = narrow.encoders.visual(views).reshape(-1, narrow.encoders.dimensions)
    assert narrow.look_closer(image, clusters, first, surface)[0] is first


@pytest.mark.parametrize("count", [-1, 5])
def test_more_views_in_turn_than_there_are_views_are_refused(localizer, count):
    with pytest.raises(ValueError, match="views_per_frame must be 0..4"):
        localizer.stream(views_per_frame=count)


def test_an_offset_of_the_microphone_is_no_loudness_and_changes_no_answer(localizer, demo):
    source = first_sounding(demo)
    image, sound, rate = moment(demo, (source["from"] + source["to"]) / 2 + 0.4)
    assert not localizer.localize(image, np.full(2 * RATE, 0.3, np.float32), RATE).active
    plain, off_centre = localizer.localize(image, sound, rate), localizer.localize(image, sound + 0.2, rate)
    assert off_centre.sources[0].label == plain.sources[0].label
    assert off_centre.sources[0].confidence == pytest.approx(plain.sources[0].confidence, abs=0.02)


def test_without_an_image_a_stream_says_what_is_heard_and_ends_what_was_seen(localizer, demo):
    source = first_sounding(demo)
    stream = localizer.stream()
    seen, _ = run(stream, demo, source["from"] - 0.5, source["to"] - 0.2)
    assert seen[-1].sources
    times = source["to"] - 0.2 + np.arange(0.1, 0.6, 0.1)
    alone = [stream.listen(*moment(demo, source["to"] - 0.2)[1:], time) for time in times]
    assert [event.kind for event in alone[0].events] == ["offset"]
    assert not any(scene.sources for scene in alone) and not any(scene.events for scene in alone[1:])
    assert alone[-1].active and alone[-1].unseen
    assert not stream.listen(np.zeros(2 * RATE, np.float32), RATE, times[-1] + 1).active


def test_without_an_image_what_was_heard_ends_where_the_clock_jumps_back(localizer, demo):
    source = first_sounding(demo)
    stream, sound = localizer.stream(), moment(demo, source["to"] - 0.2)[1:]
    before = [stream.listen(*sound, time) for time in np.arange(1000.0, 1001.5, 0.3)]
    after = [stream.listen(*sound, time) for time in np.arange(900.0, 901.5, 0.3)]
    assert before[-1].unseen and after[-1].unseen and not after[0].unseen  # it begins anew, and is told again


def test_what_is_seen_too_doubtfully_for_a_source_is_told_as_heard_after_a_second(localizer, demo):
    source = first_sounding(demo)
    sure = run(localizer.stream(), demo, source["from"] - 0.5, source["to"] - 0.2)[0]
    assert sure[-1].sources and not any(scene.sources and scene.unseen for scene in sure)
    doubting = run(localizer.stream(onset_confidence=1.0), demo, source["from"] - 0.5, source["to"] - 0.2)[0]
    told = [scene for scene in doubting if scene.unseen]
    assert not any(scene.sources for scene in doubting) and told[-1] is doubting[-1]
    assert told[0].time >= source["from"] + 0.9 and told[0].unseen[0].label == sure[-1].sources[0].label


def test_other_views_take_the_place_of_a_streams_views_and_end_its_tracks(localizer, demo):
    source = first_sounding(demo)
    stream = localizer.stream()
    seen, _ = run(stream, demo, source["from"] - 0.5, source["to"] - 0.6)
    assert seen[-1].sources
    two = localizer.with_views(ViewLayout((0.0, 180.0)), view_size=128)
    assert (len(two.layout), len(localizer.layout), two.encoders) == (2, 4, localizer.encoders)
    assert [event.kind for event in stream.change_localizer(two, 1)] == ["offset"]
    assert stream.process(*moment(demo, source["to"]), source["to"]).map.shape == (128, 256)
    with pytest.raises(ValueError, match="multiple of 32"):
        localizer.with_views(view_size=100)
