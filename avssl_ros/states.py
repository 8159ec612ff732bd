"""What the sensors are and what follows from that, said aloud: the state that the localizer publishes. No ROS in here.

A sensor is

- `ok`: it delivers, within the last sensor_timeout, what can be used;
- `stale`: it is there, but nothing (or nothing usable) comes from it;
- `absent`: it is not there: no publisher of images, no microphone.

Only of two sensors that are ok a source can be told, so the mode follows from the two. `hint` says what a person can
do.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

OK, STALE, ABSENT = "ok", "stale", "absent"
LOCALIZING, HEARING_ONLY, SEEING_ONLY, WAITING = "localizing", "hearing only", "seeing only", "waiting"


@dataclass(frozen=True)
class Sensor:
    """One sensor at one moment: `ok`, `stale` or `absent`, and what a person should know or do ('' for nothing)."""

    state: str
    hint: str = ""


@dataclass(frozen=True)
class State:
    """What is published. `since`: seconds of the node's clock when camera, microphone and mode became what they are."""

    camera: str
    microphone: str
    mode: str
    since: float
    hint: str

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "since": round(self.since, 3)})


def mode_of(camera: Sensor, microphone: Sensor) -> str:
    """What can be done with these two."""
    if camera.state == OK:
        return LOCALIZING if microphone.state == OK else SEEING_ONLY
    return HEARING_ONLY if microphone.state == OK else WAITING


class States:
    """The state over time: `now` changes with `update`, which also counts how often a sensor came back."""

    def __init__(self):
        self.now: State | None = None
        self.recoveries = {"camera": 0, "microphone": 0}
        self._seen: set[str] = set()  # the sensors that were ok before

    def update(self, camera: Sensor, microphone: Sensor, time: float) -> bool:
        """Whether the state is another one than before (a new hint alone is not), at `time` in seconds."""
        sensors = {"camera": camera.state, "microphone": microphone.state}
        before = {} if self.now is None else {name: getattr(self.now, name) for name in sensors}
        for name, state in sensors.items():
            if state == OK and before.get(name) != OK:
                self.recoveries[name] += name in self._seen
                self._seen.add(name)
        is_new = before != sensors
        since = time if is_new else self.now.since
        hint = "; ".join(sensor.hint for sensor in (camera, microphone) if sensor.hint)
        self.now = State(camera.state, microphone.state, mode_of(camera, microphone), since, hint)
        return is_new
