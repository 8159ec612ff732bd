"""What the localizer says of one moment: sources in view, sounds heard but not in view, events.

Directions follow REP-103: x forward, y left, z up; azimuth counter-clockwise from forward (+pi/2 is left),
elevation upwards, both in radians. Degrees appear only in `to_dict`, which is read by people and other programs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from avssl_ros.json_input import is_number, parse_object

SCHEMA_VERSION = 1  # of what `to_dict` gives (schemas/); grows when a field goes or changes its meaning
# Concepts that are people. Their other noises (laughter, footsteps) bear the same label: the model does not part them.
SPEECH_LABELS = frozenset({"person", "child", "baby"})
MAX_LINE = 1_000_000  # characters of one scene's JSON; a real one has some hundred
MAX_SECONDS = 1e12  # a time that a clock may show
MAX_LISTED = 1000  # sources, or sounds out of view, of one scene that is read back


@dataclass(frozen=True)
class Source:
    """One sounding object in view.

    Attributes:
        azimuth, elevation: direction in radians (REP-103).
        extent: angular radius of the region that sounds, radians.
        confidence: calibrated probability in [0, 1] that the object there is what sounds.
        label, class_id: name of the nearest concept of the model and its index in the manifest.
        embedding: unit vector (D,) float32 of the cluster.
        map: float32 (h, w) in [0, 1], this source alone, on the same grid as `Localization.map`.
        id, state, onset: set by tracking only. `state` is "onset" in the first frame a source is published and
            "active" after it; `onset` is the capture time in seconds at which it began to sound.
    """

    azimuth: float
    elevation: float
    extent: float
    confidence: float
    label: str
    class_id: int
    embedding: np.ndarray
    map: np.ndarray
    id: int | None = None
    state: str | None = None
    onset: float | None = None

    @property
    def is_speech(self) -> bool:
        """Whether a person makes the sound, by its label."""
        return self.label in SPEECH_LABELS

    def to_dict(self) -> dict:
        """The fields of `sources.jsonl` and `~/events` (schemas/); angles in degrees."""
        return {
            "id": self.id,
            "label": self.label,
            "speech": self.is_speech,
            "onset": None if self.onset is None else round(float(self.onset), 3),
            "azimuth_deg": round(float(np.degrees(self.azimuth)), 1),
            "elevation_deg": round(float(np.degrees(self.elevation)), 1),
            "extent_deg": round(float(np.degrees(self.extent)), 1),
            "confidence": round(float(self.confidence), 3),
        }


@dataclass(frozen=True)
class Unseen:
    """A sound that matches nothing in view.

    Attributes:
        label, class_id, embedding: as of Source. confidence: calibrated probability that it is rightly named.
        doubtful: something in view may make it, too unlikely for a source. Told of streams only, while nothing else is.
    """

    label: str
    class_id: int
    confidence: float
    embedding: np.ndarray
    doubtful: bool = False

    def to_dict(self) -> dict:
        speech = self.label in SPEECH_LABELS
        return {"label": self.label, "speech": speech, "confidence": round(float(self.confidence), 3)}


@dataclass(frozen=True)
class Event:
    """A source appeared ("onset"), moved or was renamed ("change"), or fell silent ("offset").

    `time` is the capture time in seconds at which it happened, which for an offset lies before the frame that says so.
    """

    kind: str
    time: float
    source: Source

    def to_dict(self) -> dict:
        """One message of `~/events` (schemas/event.schema.json)."""
        time = round(float(self.time), 3)
        return {"version": SCHEMA_VERSION, "event": self.kind, "time": time, **self.source.to_dict()}


@dataclass(frozen=True)
class Localization:
    """Result for one image and the sound that goes with it.

    Attributes:
        sources: strongest first; empty when nothing in view sounds.
        map: float32 (h, w) in [0, 1] on the input's own projection: the maximum over all sources' maps. Its size is
            the localizer's map size, not the image's: scale it up to draw it.
        unseen: sounds heard that match nothing in view, or nothing surely; empty in silence.
        active: True when there is any sound above the noise floor.
        time: capture time in seconds, None for a single image.
        events: what changed with this frame; filled by tracking only.
    """

    sources: tuple[Source, ...]
    map: np.ndarray
    unseen: tuple[Unseen, ...]
    active: bool
    time: float | None = None
    events: tuple[Event, ...] = field(default=())

    def to_dict(self) -> dict:
        """One line of `sources.jsonl`, and with stamp and frame a message of `~/scene` (schemas/scene.schema.json)."""
        return {
            "version": SCHEMA_VERSION,
            "time": None if self.time is None else round(float(self.time), 3),
            "active": bool(self.active),
            "sources": [source.to_dict() for source in self.sources],
            "unseen": [sound.to_dict() for sound in self.unseen],
        }


def read_scene(text: str) -> dict:
    """The checked object of a `~/scene` message or a line of sources.jsonl, as `Localization.to_dict` made it.

    Checks what this package's own programs go by (schemas/scene.schema.json says it all). Raises ValueError.
    """
    line = parse_object(text, "the scene", MAX_LINE)
    if line.get("version") != SCHEMA_VERSION:
        raise ValueError(f"the scene has version {line.get('version')!r}, wanted {SCHEMA_VERSION}")
    if not isinstance(line.get("active"), bool):
        raise ValueError(f"the scene's 'active' must be true or false, got {str(line.get('active'))[:100]!r}")
    for name in ("sources", "unseen"):
        sounds = line.get(name)
        if not isinstance(sounds, list) or len(sounds) > MAX_LISTED or not all(map(_is_sound, sounds)):
            raise ValueError(f"the scene's '{name}' must list at most {MAX_LISTED} objects with label and confidence")
    if not all(_is_source(source) for source in line["sources"]):
        raise ValueError(
            "the scene's sources must have angles in degrees, a whole number or null as id, seconds or null as onset"
        )
    if not (line.get("time") is None or is_number(line["time"], -MAX_SECONDS, MAX_SECONDS)):
        raise ValueError(f"the scene's time must be seconds or null, got {str(line['time'])[:100]!r}")
    return line


def _is_sound(sound) -> bool:
    return (
        isinstance(sound, dict)
        and isinstance(sound.get("label"), str)
        and is_number(sound.get("confidence"), 0.0, 1.0)
    )


def _is_source(source: dict) -> bool:
    identity, onset = source.get("id"), source.get("onset")
    angles = (("azimuth_deg", 180.0), ("elevation_deg", 90.0), ("extent_deg", 180.0))
    return (
        "id" in source
        and (identity is None or (isinstance(identity, int) and is_number(identity, 0, 2**31)))
        and (onset is None or is_number(onset, -MAX_SECONDS, MAX_SECONDS))
        and all(is_number(source.get(name), -most, most) for name, most in angles)
    )
