"""Identity over time, onset and offset with hysteresis in seconds."""

from dataclasses import replace

import numpy as np
import pytest

from avssl_ros.scene import Source, Unseen
from avssl_ros.tracking import HeardTracker, Tracker, TrackingConfig, surest_by_class

RATE = 10.0


def source(azimuth, confidence=0.9, label="dog", class_id=3):
    embedding = np.eye(8, dtype=np.float32)[class_id]
    return Source(azimuth, 0.0, 0.3, confidence, label, class_id, embedding, np.ones((4, 8), np.float32))


def play(tracker, frames):
    """Runs frames (tuples of sources) at RATE; returns the published sources of each and all events."""
    published, events = [], []
    for index, sources in enumerate(frames):
        now, new = tracker.update(tuple(sources), index / RATE)
        published.append(now)
        events += new
    return published, events


def test_a_source_is_published_after_the_minimum_time_and_its_onset_is_when_it_began():
    tracker = Tracker(TrackingConfig(onset_confidence=0.5))
    published, events = play(tracker, [[]] * 2 + [[source(0.5, confidence=1.0)]] * 5)
    assert [len(sources) for sources in published] == [0, 0, 0, 0, 1, 1, 1]
    assert events[0].kind == "onset" and events[0].time == pytest.approx(0.2)
    assert published[4][0].state == "onset" and published[5][0].state == "active" and published[5][0].id == 1


def test_a_single_frame_is_no_source():
    published, events = play(Tracker(), [[source(0.5)], [], [], [], []])
    assert not any(published) and not events


@pytest.mark.parametrize("rate", [10.0, 5.0, 3.0])
def test_a_blip_of_two_frames_is_no_source_at_any_rate(rate):
    """Dropped frames make the time between two longer, and must not make two frames weigh more."""
    tracker = Tracker()
    frames = [[]] * 5 + [[source(0.5)]] * 2 + [[]] * 3
    published = [tracker.update(tuple(sources), index / rate)[0] for index, sources in enumerate(frames)]
    assert not any(published)
    lasting = [tracker.update((source(0.5),), 10 + index / rate)[0] for index in range(6)]
    assert lasting[-1] and not lasting[1]


@pytest.mark.parametrize("rate, confidence, config", [
    (1.0, 0.6, {}),
    (2.0, 0.5, {}),
    (30.0, 0.8, {"min_off_seconds": 0.0}),
    (15.0, 0.6, {"min_off_seconds": 0.05}),
    (15.0, 0.9, {"onset_confidence": 0.8, "offset_confidence": 0.6}),
    (15.0, 1.0, {"onset_confidence": 0.8, "offset_confidence": 0.7}),
    (15.0, 0.7, {"offset_confidence": 0.45}),
])  # fmt: skip
def test_what_is_sure_enough_is_published_at_any_rate_and_with_any_thresholds(rate, confidence, config):
    tracker = Tracker(TrackingConfig(**config))
    told = [bool(tracker.update((source(0.5, confidence),), index / rate)[0]) for index in range(int(20 * rate))]
    assert told[-1] and told == sorted(told)  # once published it stays


def test_a_short_gap_keeps_the_identity_and_a_long_one_ends_it():
    frames = [[source(0.5)]] * 5 + [[]] * 3 + [[source(0.5)]] * 5 + [[]] * 8
    published, events = play(Tracker(), frames)
    assert [event.kind for event in events] == ["onset", "offset"]
    assert events[1].time == pytest.approx(1.2)  # when it was last heard, not when that was noticed
    assert published[-1] == ()


def test_confidence_between_the_thresholds_holds_but_does_not_start():
    weak = [source(0.5, confidence=0.35)]
    assert play(Tracker(), [weak] * 30)[1] == []
    _, events = play(Tracker(), [[source(0.5)]] * 5 + [weak] * 20)
    assert [event.kind for event in events] == ["onset"]


def test_what_lasts_is_believed_at_a_lower_confidence():
    likely = [source(0.5, confidence=0.49)]
    published, events = play(Tracker(), [[]] * 2 + [likely] * 15)
    assert [len(sources) for sources in published] == [0] * 12 + [1] * 5
    assert events[0].time == pytest.approx(0.2)  # when it began, not when it was believed
    assert play(Tracker(TrackingConfig(onset_confidence=0.7)), [likely] * 30)[1] == []
    on_and_off = [likely] * 8 + [[]] * 5
    assert play(Tracker(), on_and_off * 3)[1] == []  # together it lasted, in one piece never


def test_identities_cross_the_seam():
    published, _ = play(Tracker(), [[source(np.pi - 0.3 + 0.05 * i - (2 * np.pi if i > 6 else 0))] for i in range(14)])
    assert {sources[0].id for sources in published if sources} == {1}
    assert published[-1][0].azimuth < 0


def test_two_sources_keep_their_names():
    dog, cat = source(0.2), source(2.0, label="cat", class_id=5)
    frames = [[dog, cat], [cat, dog]] * 4
    published, _ = play(Tracker(), frames)
    names = {(s.id, s.label) for sources in published[3:] for s in sources}
    assert names in ({(1, "dog"), (2, "cat")}, {(2, "dog"), (1, "cat")})


def test_a_source_that_moves_away_is_announced_again():
    _, events = play(Tracker(), [[source(0.04 * i)] for i in range(15)])
    assert [event.kind for event in events][:2] == ["onset", "change"]


def test_a_lost_sensor_ends_everything_with_an_offset():
    tracker = Tracker()
    play(tracker, [[source(0.5)]] * 5)
    (event,) = tracker.end()
    assert event.kind == "offset" and tracker.update((), 0.6) == ((), ())


@pytest.mark.parametrize(
    "values",
    [{"onset_confidence": 1.5}, {"offset_confidence": 0.7}, {"min_on_seconds": -1.0}, {"max_step_deg": 0.0}],
)
def test_impossible_thresholds_are_refused(values):
    with pytest.raises(ValueError):
        TrackingConfig(**values)


def heard(class_id):
    return Unseen("drums", class_id, 0.9, np.zeros(3))


def test_a_sound_out_of_view_is_told_once_it_lasted_and_until_it_was_silent_for_a_while():
    tracker, config = HeardTracker(), TrackingConfig(min_on_seconds=0.2, min_off_seconds=0.5)
    frames = [(0.0, True), (0.1, True), (0.2, True), (0.4, False), (0.6, False), (0.8, False), (0.9, True)]
    told = [len(tracker.update((heard(3),) if sounds else (), time, config)) for time, sounds in frames]
    assert told == [0, 0, 1, 1, 1, 0, 0]


def test_a_blip_out_of_view_is_never_told():
    tracker, config = HeardTracker(), TrackingConfig(min_on_seconds=0.2, min_off_seconds=0.5)
    assert [tracker.update((heard(3),) if time == 0 else (), time, config) for time in (0, 0.1, 0.3, 0.4)] == [()] * 4


def test_what_something_in_view_may_make_is_told_after_a_second_and_no_longer_than_it_is_so():
    tracker, config = HeardTracker(), TrackingConfig(min_on_seconds=0.2, min_off_seconds=0.5)
    doubtful = replace(heard(3), doubtful=True)
    told = [len(tracker.update((doubtful,), time / 10, config)) for time in range(13)]
    assert told == [0] * 10 + [1] * 3
    assert tracker.update((), 1.3, config) == () and len(tracker.update((doubtful,), 1.4, config)) == 1


def test_of_two_sounds_of_one_class_the_surer_is_told():
    sure, weak, doubtful = heard(3), replace(heard(3), confidence=0.6), replace(heard(3), confidence=1.0, doubtful=True)
    other = heard(5)
    assert surest_by_class([weak, other, doubtful, sure]) == (sure, other)
    tracker, config = HeardTracker(), TrackingConfig(min_on_seconds=0.0)
    assert tracker.update((sure, weak, doubtful), 0.0, config) == (sure,)


@pytest.mark.parametrize("rate", [5.0, 10.0, 30.0])
@pytest.mark.parametrize("speed_deg", [30.0, 90.0])
def test_what_moves_steadily_is_followed_without_lag_across_the_seam(rate, speed_deg):
    """As everything does while the robot turns."""
    tracker, lag, identities = Tracker(), [], set()
    for index in range(int(4 * rate)):
        azimuth = np.radians(100 + speed_deg * index / rate)
        azimuth = (azimuth + np.pi) % (2 * np.pi) - np.pi
        for told in tracker.update((source(azimuth),), index / rate)[0]:
            identities.add(told.id)
            if index > 2.5 * rate:
                lag.append(np.degrees((azimuth - told.azimuth + np.pi) % (2 * np.pi) - np.pi))
    assert identities == {1} and np.abs(lag).max() < 2


def test_what_stands_still_is_told_more_steadily_than_it_is_seen():
    rng, tracker, told = np.random.default_rng(0), Tracker(), []
    seen = rng.normal(0, np.radians(4), 300)
    for index, azimuth in enumerate(seen):
        told += [s.azimuth for s in tracker.update((source(azimuth),), index / RATE)[0]]
    assert np.std(told[10:]) < 0.75 * np.std(seen)
