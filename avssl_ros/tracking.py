"""Identities over time: which source of this frame is which of the last, when it began and when it fell silent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from scipy.optimize import linear_sum_assignment

from avssl_ros.geometry import angle_between, direction_to_vector, vector_to_direction
from avssl_ros.scene import Event, Source, Unseen

DIRECTION_SECONDS = 0.4  # memory of the direction's filter
FASTEST = np.pi  # rad/s that a track may be thought to move: a robot that turns itself half around in a second
# Time constant of the confidence, which wavers from frame to frame where a camera shakes: at 0.25 s and a higher onset
# validation timelines come out the same, but a walk with a hand-held camera gets tracks of single good frames.
SMOOTHING_SECONDS = 0.4
# The longest time that one frame speaks for. Where frames are dropped or the rate is low, a single frame in which
# something else lights up would otherwise outweigh all before it.
FRAME_SECONDS = 0.1
# What lasts is believed at a lower confidence: a good moment may be chance, a second of nearly as good ones is less so.
# On validation timelines and voices a lower onset confidence for everything is wrong more often for what it finds.
LASTING_SECONDS = 1.0
LASTING_ODDS = 0.82  # of those of the onset confidence: 0.45 where that is 0.5; 1 stays 1, for never
# As long a sound may be about to get a source: half of them are told within 0.7 s (benchmarks/streams.py).
DOUBT_SECONDS = 1.0
# How long a track that is not published yet may be below the offset confidence, at least: a blip ends sooner.
BLIP_SECONDS = 0.3
CHANGE_DEG = 15.0  # a source that moved this far since it was last announced is announced again


@dataclass(frozen=True)
class TrackingConfig:
    """Two-threshold hysteresis with minimum durations, all in seconds and degrees.

    Attributes:
        onset_confidence: a track is published once its confidence reached this, 0..1, or LASTING_ODDS of its odds where
            it has been seen for LASTING_SECONDS,
        min_on_seconds: and it has been seen for so long;
        offset_confidence: it ends once its confidence stayed below this, 0..onset_confidence,
        min_off_seconds: for so long.
        max_step_deg: largest jump of one identity between two frames.
    """

    onset_confidence: float = 0.5
    offset_confidence: float = 0.25
    min_on_seconds: float = 0.2
    min_off_seconds: float = 0.4
    max_step_deg: float = 25.0

    def __post_init__(self):
        if not 0.0 <= self.offset_confidence <= self.onset_confidence <= 1.0:
            raise ValueError(
                "thresholds must be 0 <= offset_confidence <= onset_confidence <= 1, got "
                f"offset {self.offset_confidence} and onset {self.onset_confidence}"
            )
        for name in ("min_on_seconds", "min_off_seconds"):
            if not 0.0 <= getattr(self, name) <= 10.0:
                raise ValueError(f"{name} must be 0..10 seconds, got {getattr(self, name)}")
        if not 1.0 <= self.max_step_deg <= 180.0:
            raise ValueError(f"max_step_deg must be 1..180 degrees, got {self.max_step_deg}")


@dataclass
class _Track:
    """A source followed over time; `source` is the smoothed state, `id` is None until it is published."""

    source: Source
    first_time: float
    last_time: float  # of the last frame, whether seen in it or not
    heard_time: float  # of the last frame in which it was above the offset threshold
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(3))  # of the unit vector, 1/s
    votes: dict[tuple[int, str], float] = field(default_factory=dict)
    id: int | None = None
    announced: Source | None = None

    def expected(self, time: float) -> np.ndarray:
        """Unit vector (3,) of where it is at `time` if it goes on as it did."""
        here = direction_to_vector(self.source.azimuth, self.source.elevation)
        speed = float(np.linalg.norm(self.velocity))
        angle = max(time - self.last_time, 0.0) * speed
        return np.cos(angle) * here + np.sin(angle) * self.velocity / max(speed, 1e-9)


class Tracker:
    """Turns the sources of single frames into tracks with identity, onset and offset."""

    def __init__(self, config: TrackingConfig | None = None):
        self.config = config or TrackingConfig()
        self._tracks: list[_Track] = []
        self._last_time: float | None = None
        self._ids = count(1)

    def update(self, sources: tuple[Source, ...], time: float) -> tuple[tuple[Source, ...], tuple[Event, ...]]:
        """Published sources, strongest first, and the events of this frame.

        Args:
            sources: of one frame, with confidences down to `offset_confidence`.
            time: capture time in seconds, later than that of the frame before.
        """
        matched = self._match(sources, time)
        for index, track in enumerate(self._tracks):
            self._advance(track, sources[matched[index]] if index in matched else None, time)
        for index in set(range(len(sources))) - set(matched.values()):
            self._tracks.append(self._begin(sources[index], time))
        passed = 0.0 if self._last_time is None else time - self._last_time
        self._last_time = time
        events = self._onsets(time) + self._changes(time) + self._offsets(time, passed)
        return self._published(events), tuple(events)

    def _begin(self, source: Source, time: float) -> _Track:
        """A track whose confidence grows from zero: one frame, or one in two, is no source yet."""
        before = time if self._last_time is None else min(self._last_time, time)
        track = _Track(replace(source, confidence=0.0), time, before, time)
        self._advance(track, source, time)
        return track

    def end(self) -> tuple[Event, ...]:
        """Ends all tracks, for a sensor that is gone or a clock that jumped; returns their offsets."""
        told = [track for track in self._tracks if track.id is not None]
        events = tuple(Event("offset", track.heard_time, track.source) for track in told)
        self._tracks.clear()
        self._last_time = None
        return events

    def _match(self, sources: tuple[Source, ...], time: float) -> dict[int, int]:
        """Track index to source index: nearest to where it should be and alike in the embedding (Hungarian method)."""
        if not self._tracks or not sources:
            return {}
        limit = np.radians(self.config.max_step_deg)
        expected = np.stack([track.expected(time) for track in self._tracks])
        found = direction_to_vector(*(np.array([getattr(s, n) for s in sources]) for n in ("azimuth", "elevation")))
        angle = np.arccos(np.clip(expected @ found.T, -1.0, 1.0))
        embeddings = [track.source.embedding for track in self._tracks]
        alike = np.stack(embeddings) @ np.stack([s.embedding for s in sources]).T
        cost = angle / limit + 0.5 * (1.0 - alike)
        pairs = zip(*linear_sum_assignment(np.where(angle > limit, 1e6, cost)))
        return {int(track): int(source) for track, source in pairs if angle[track, source] <= limit}

    def _advance(self, track: _Track, seen: Source | None, time: float) -> None:
        passed, expected = max(time - track.last_time, 0.0), track.expected(time)
        track.last_time = time
        spoken_for = passed if seen is None else min(passed, FRAME_SECONDS)
        keep = float(np.exp(-spoken_for / SMOOTHING_SECONDS))
        if seen is None:
            track.velocity = np.zeros(3)
            blank = np.zeros_like(track.source.map)
            track.source = replace(track.source, confidence=keep * track.source.confidence, map=blank)
            return
        smoothed = keep * track.source.confidence + (1 - keep) * seen.confidence
        if min(seen.confidence, smoothed) >= self.config.offset_confidence:  # a blip does not wake what fell silent
            track.heard_time = time
        track.votes = {name: keep * vote for name, vote in track.votes.items()}
        track.votes[_name(seen)] = track.votes.get(_name(seen), 0.0) + seen.confidence
        class_id, label = max(track.votes, key=track.votes.get)
        azimuth, elevation = _follow(track, seen, expected, passed, float(np.exp(-passed / DIRECTION_SECONDS)))
        track.source = replace(
            seen, azimuth=azimuth, elevation=elevation, class_id=class_id, label=label, confidence=smoothed,
            id=track.id, onset=track.source.onset,
        )  # fmt: skip

    def _onsets(self, time: float) -> list[Event]:
        events = []
        for track in self._tracks:
            ripe = time - track.first_time >= self.config.min_on_seconds and track.heard_time == time
            if track.id is None and ripe and track.source.confidence >= self._enough(track, time):
                track.id = next(self._ids)
                track.source = replace(track.source, id=track.id, onset=track.first_time)
                track.announced = track.source
                events.append(Event("onset", track.first_time, track.source))
        return events

    def _enough(self, track: _Track, time: float) -> float:
        """The confidence that a track needs to be published."""
        onset = self.config.onset_confidence
        if time - track.first_time < LASTING_SECONDS:
            return onset
        return LASTING_ODDS * onset / (1 - onset + LASTING_ODDS * onset)

    def _changes(self, time: float) -> list[Event]:
        events = []
        for track in self._tracks:
            if track.announced is None or track.heard_time != time:
                continue
            moved = angle_between(track.source.azimuth, track.source.elevation,
                                  track.announced.azimuth, track.announced.elevation)  # fmt: skip
            if track.source.label != track.announced.label or moved > np.radians(CHANGE_DEG):
                track.announced = track.source
                events.append(Event("change", time, track.source))
        return events

    def _offsets(self, time: float, passed: float) -> list[Event]:
        """Drops tracks that were silent for long enough; a track never published goes without an event."""
        ended = [track for track in self._tracks if time - track.heard_time > self._patience(track, passed)]
        self._tracks = [track for track in self._tracks if not any(track is other for other in ended)]
        return [Event("offset", track.heard_time, track.source) for track in ended if track.id is not None]

    def _patience(self, track: _Track, passed: float) -> float:
        """Seconds that a track may be below the offset confidence, where `passed` seconds are between two frames.

        A new one is below it until what is just sure enough to be published has risen from zero to it: later where
        thresholds are high or close to each other, or where frames, each of which speaks for FRAME_SECONDS, are rare.
        """
        if track.id is not None:
            return self.config.min_off_seconds
        share = self.config.offset_confidence / max(self.config.onset_confidence, 1e-9)
        rise = -SMOOTHING_SECONDS * float(np.log1p(-min(share, 0.9)))
        return max(BLIP_SECONDS, rise * max(1.0, passed / FRAME_SECONDS))

    def _published(self, events: list[Event]) -> tuple[Source, ...]:
        new = {event.source.id for event in events if event.kind == "onset"}
        sources = [replace(track.source, state="onset" if track.id in new else "active")
                   for track in self._tracks if track.id is not None]  # fmt: skip
        return tuple(sorted(sources, key=lambda source: -source.confidence))


class HeardTracker:
    """Sounds that match nothing in view, over time: told once they lasted, until silent for as long as sources.

    What something in view may make is told later, and no longer than it is so.
    """

    def __init__(self):
        self._since: dict[int, float] = {}
        self._last: dict[int, tuple[float, Unseen]] = {}

    def update(self, unseen: tuple[Unseen, ...], time: float, config: TrackingConfig) -> tuple[Unseen, ...]:
        """What is to be told of the sounds of one frame at `time` (seconds, later than that of the frame before)."""
        for sound in surest_by_class(unseen):
            self._since.setdefault(sound.class_id, time)
            self._last[sound.class_id] = time, sound
        for class_id in [c for c, (last, _) in self._last.items() if time - last > config.min_off_seconds]:
            del self._since[class_id], self._last[class_id]
        return tuple(sound for class_id, (last, sound) in self._last.items()
                     if last - self._since[class_id] >= (DOUBT_SECONDS if sound.doubtful else config.min_on_seconds)
                     and (last == time or not sound.doubtful))  # fmt: skip

    def end(self) -> None:
        """Forgets all, in silence, for a sensor that is gone or a clock that jumped."""
        self._since.clear()
        self._last.clear()


def surest_by_class(unseen: Iterable[Unseen]) -> tuple[Unseen, ...]:
    """One sound for each class, in order of their first: what is not doubtful before what is, then the surer."""
    best: dict[int, Unseen] = {}
    for sound in unseen:
        other = best.setdefault(sound.class_id, sound)
        best[sound.class_id] = max(other, sound, key=lambda one: (not one.doubtful, one.confidence))
    return tuple(best.values())


def _name(source: Source) -> tuple[int, str]:
    return source.class_id, source.label


def _follow(track: _Track, seen: Source, expected: np.ndarray, passed: float, keep: float) -> tuple[float, float]:
    """Direction after one more sighting, by a g-h filter with fading memory (Morrison 1969) on unit vectors.

    Unlike an average of the last directions, it does not lag behind what moves steadily, as everything does while the
    robot turns. Updates the track's velocity.
    """
    surprise = direction_to_vector(seen.azimuth, seen.elevation) - expected
    ahead = expected + (1 - keep**2) * surprise
    ahead /= np.linalg.norm(ahead)
    if passed > 0:
        speed = float(np.linalg.norm(track.velocity))
        velocity = _along(track.velocity, expected, speed) + (1 - keep) ** 2 * surprise / passed
        track.velocity = _along(velocity, ahead, min(float(np.linalg.norm(velocity)), FASTEST))
    azimuth, elevation = vector_to_direction(ahead)
    return float(azimuth), float(elevation)


def _along(velocity: np.ndarray, at: np.ndarray, speed: float) -> np.ndarray:
    """The velocity turned into the sphere's tangent plane at the unit vector `at`, with this speed."""
    tangent = velocity - (velocity @ at) * at
    return speed * tangent / max(float(np.linalg.norm(tangent)), 1e-9)
