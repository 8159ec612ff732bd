"""What the localizer says of one moment: sources in view, sounds heard but not in view, events.

Directions follow REP-103: x forward, y left, z up; azimuth counter-clockwise from forward (+pi/2 is left),
elevation upwards, both in radians. Degrees appear only in `to_dict`, which is read by people and other programs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


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

    def to_dict(self) -> dict:
        """The fields of `sources.jsonl` and `~/events`; angles in degrees."""
        return {
            "id": self.id,
            "label": self.label,
            "azimuth_deg": round(float(np.degrees(self.azimuth)), 1),
            "elevation_deg": round(float(np.degrees(self.elevation)), 1),
            "extent_deg": round(float(np.degrees(self.extent)), 1),
            "confidence": round(float(self.confidence), 3),
        }


@dataclass(frozen=True)
class Unseen:
    """A sound that matches nothing in view."""

    label: str
    class_id: int
    confidence: float
    embedding: np.ndarray

    def to_dict(self) -> dict:
        return {"label": self.label, "confidence": round(float(self.confidence), 3)}


@dataclass(frozen=True)
class Event:
    """A source appeared ("onset"), moved or was renamed ("change"), or fell silent ("offset").

    `time` is the capture time in seconds at which it happened, which for an offset lies before the frame that says so.
    """

    kind: str
    time: float
    source: Source

    def to_dict(self) -> dict:
        return {"event": self.kind, "time": round(float(self.time), 3), **self.source.to_dict()}


@dataclass(frozen=True)
class Localization:
    """Result for one image and the sound that goes with it.

    Attributes:
        sources: strongest first; empty when nothing in view sounds.
        map: float32 (h, w) in [0, 1] on the input's own projection: the maximum over all sources' maps. Its size is
            the localizer's map size, not the image's: scale it up to draw it.
        unseen: sounds heard that match nothing in view; empty in silence.
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
        """One line of `sources.jsonl`."""
        return {
            "time": None if self.time is None else round(float(self.time), 3),
            "active": bool(self.active),
            "sources": [source.to_dict() for source in self.sources],
            "unseen": [sound.to_dict() for sound in self.unseen],
        }
