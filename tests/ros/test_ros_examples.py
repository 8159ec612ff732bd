"""The three programs in examples/ beside the real node with the shipped models, on the demo scene; and what they read:
every message of `~/events` and `~/scene` is as its schema says."""

from __future__ import annotations

import csv
import itertools
import json
import re
import signal
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import LOCALIZER, PLAYER, Peer, Processes, log_of, terminate, wait_until
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from avssl_ros.scene import Event, Localization, Source

pytestmark = pytest.mark.ros

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
START_SECONDS = 60.0
PERSON_DEG = -97.0  # demo/scene.json: a person speaks from 6.0 to 9.9 s, after a sheep and before a dog
NAMES = ("head_follows_speaker", "describe_for_language_model", "record_sources_csv")


def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        json.loads((files("avssl_ros") / "schemas" / f"{name}.schema.json").read_text())
    )


def start_example(processes: Processes, name: str, table: Path):
    return processes.start([str(EXAMPLES / f"{name}.py")], **({"file": str(table)} if "csv" in name else {}))


class Run:
    """What the demo scene brought about: the node's messages and the examples' output."""

    def __init__(self, processes: Processes, peer: Peer, folder: Path):
        self.csv = folder / "sources.csv"
        messages = {name: peer.collect(String, f"localizer/{name}") for name in ("events", "scene")}
        self.commands = peer.collect(JointTrajectory, "head/joint_trajectory")
        self.texts = peer.collect(String, "describer/text")
        self.localizer = processes.start(LOCALIZER, audio_source="topic")
        self.examples = [start_example(processes, name, self.csv) for name in NAMES]
        wait_until(lambda: self._are_connected(peer), START_SECONDS, "the node and the examples")
        # What the peer knows is not yet what the localizer knows. A latched message that comes to the last reader of
        # the peer shows that the localizer has found those before it, which it was told of in their order.
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        states = peer.collect(String, "localizer/state", latched)
        wait_until(lambda: states, START_SECONDS, "the localizer's state")
        # Two subscribers of the images: the localizer, and none else; its sound is found a moment later.
        player = processes.start(PLAYER, subscribers=1, start_delay=1.5)
        wait_until(lambda: player.poll() is not None, 120.0, "the demo scene's end")
        wait_until(lambda: not json.loads(messages["scene"][-1].data)["sources"], 10.0, "all sources to end")
        self.status = [terminate(process)[0] for process in (*self.examples, self.localizer)]
        self.events = [json.loads(message.data) for message in messages["events"]]
        self.scenes = [json.loads(message.data) for message in messages["scene"]]

    def _are_connected(self, peer: Peer) -> bool:
        dead = [process for process in (self.localizer, *self.examples) if process.poll() is not None]
        assert not dead, log_of(dead[0])
        return (
            peer.node.count_subscribers("localizer/scene") >= 4  # ours and the examples
            and peer.node.count_subscribers("localizer/events") >= 2
            and peer.node.count_publishers("localizer/scene") == 1
        )


@pytest.fixture(scope="module")
def run(domain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    processes, peer = Processes(folder), Peer()
    yield Run(processes, peer, folder)
    peer.close()
    processes.close()


def test_everything_published_is_as_its_schema_says(run):
    assert {event["event"] for event in run.events} >= {"onset", "offset"} and len(run.scenes) > 20
    for validator, messages in ((schema("event"), run.events), (schema("scene"), run.scenes)):
        problems = [error.message for message in messages for error in validator.iter_errors(message)]
        assert not problems, problems[:5]


def test_identities_tie_events_together(run):
    begun = {event["id"]: event for event in run.events if event["event"] == "onset"}
    ended = {event["id"]: event for event in run.events if event["event"] == "offset"}
    assert set(begun) == set(ended)
    assert all(ended[i]["time"] >= begun[i]["time"] == begun[i]["onset"] == ended[i]["onset"] for i in begun)


def test_speech_is_told_from_other_sounds(run):
    speech = {source["label"]: source["speech"] for scene in run.scenes for source in scene["sources"]}
    assert speech["person"] and not any(value for label, value in speech.items() if label not in ("person", "child"))


def test_the_head_turns_to_the_person_and_back_and_to_nobody_else(run):
    angles = [float(np.degrees(command.points[0].positions[0])) for command in run.commands]
    assert angles and abs(angles[0] - PERSON_DEG) < 15 and angles[-1] == 0.0, angles
    speakers = {event["id"] for event in run.events if event["speech"]}
    assert len(angles) <= sum(event["id"] in speakers for event in run.events)


def test_the_head_turns_no_further_than_its_limit_and_looks_ahead_when_the_localizer_is_gone(processes, peer):
    """Killed, it sends no offset; started again, it counts its sources from 1."""
    head = processes.start([str(EXAMPLES / "head_follows_speaker.py")], limit_deg=30)  # as one types it, no double
    commands = peer.collect(JointTrajectory, "head/joint_trajectory")
    events, scenes = (peer.node.create_publisher(String, f"localizer/{name}", 10) for name in ("events", "scene"))
    for topic in (events, scenes):
        wait_until(topic.get_subscription_count, START_SECONDS, lambda: log_of(head))
    wait_until(lambda: peer.node.count_publishers("head/joint_trajectory"), START_SECONDS, lambda: log_of(head))
    speaker = Source(np.radians(40), 0.0, 0.2, 0.9, "person", 0, np.zeros(1), np.zeros((1, 1)), 7, "active", 1.0)
    scene = String(data=json.dumps(Localization((speaker,), speaker.map, (), True, 1.0).to_dict()))
    onset = String(data=json.dumps({**Event("onset", 1.0, speaker).to_dict(), "speech": True}))

    def has_turned() -> bool:
        """Said again until it has: a message gets lost while one side knows of the other, and not yet the other way."""
        scenes.publish(scene)
        events.publish(onset)
        time.sleep(0.1)
        return bool(commands)

    wait_until(has_turned, 10.0, lambda: log_of(head))
    wait_until(lambda: commands[-1].points[0].positions[0] == 0.0, 10.0, lambda: log_of(head))
    degrees = [round(float(np.degrees(command.points[0].positions[0]))) for command in commands]
    assert [angle for angle, _ in itertools.groupby(degrees)] == [30, 0]


def test_a_language_model_is_told_what_sounds_where_and_since_when(run):
    texts = [message.data for message in run.texts]
    told = [text for text in texts if text.startswith("speech, right, since ")]
    assert told and 0.0 < float(told[-1].split("since ")[1].split(" s")[0]) < 6.0, texts
    assert any("sheep or goat, rear, since" in text for text in texts) and "nothing sounds" in texts
    assert texts[-1] in log_of(run.examples[1])


def test_the_csv_has_every_source_of_every_image(run):
    with run.csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    published = [source for scene in run.scenes for source in scene["sources"]]
    assert [(int(row["id"]), float(row["azimuth_deg"])) for row in rows] == [
        (source["id"], source["azimuth_deg"]) for source in published
    ]


def test_the_csv_may_lie_in_the_home_folder(processes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recorder = processes.start([str(EXAMPLES / "record_sources_csv.py")], file="~/sources.csv")
    wait_until((tmp_path / "sources.csv").exists, START_SECONDS, lambda: log_of(recorder))


def test_examples_end_with_status_0_at_sigterm(run):
    assert run.status == [0, 0, 0, 0]
    assert not any("Traceback" in log_of(process) for process in run.examples)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_an_example_ends_with_status_0_at_sigterm_while_it_starts(processes, tmp_path, name, moment):
    example = start_example(processes, name, tmp_path / "sources.csv")
    wait_until(lambda: has_handler(example), START_SECONDS, "rclpy's handler")
    time.sleep(moment)
    assert terminate(example)[0] == 0, log_of(example)
    assert "Traceback" not in log_of(example)


def has_handler(process) -> bool:
    """Whether the process has a handler for SIGTERM: rclpy.init has set it."""
    caught = int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("name, broken", [("event", {"version": 2}), ("event", {"speech": None}),
                                          ("event", {"azimuth_deg": 181.0}), ("scene", {"active": 1}),
                                          ("scene", {"version": "1"})])  # fmt: skip
def test_the_schemas_refuse_what_is_not_as_they_say(name, broken):
    source = Source(0.5, 0.1, 0.2, 0.9, "dog", 3, np.zeros(1), np.zeros((1, 1)), 4, "active", 1.0)
    whole = Event("onset", 1.0, source).to_dict()
    if name == "scene":
        whole = Localization((source,), source.map, (), True, 1.0).to_dict()
    assert schema(name).is_valid(whole) and not schema(name).is_valid({**whole, **broken})
    schema(name).check_schema(schema(name).schema)
