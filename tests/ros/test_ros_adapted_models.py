"""Other models while the node runs: it answers images all the while, goes on with them, and refuses what is none."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from rcl_interfaces.srv import GetParameters
from ros_graph import LOCALIZER, Feed, log_of, stamp_of, wait_until
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

from avssl_ros.paths import shipped_models

pytestmark = pytest.mark.ros

HERE = " of this place"
RATE = 10.0  # images per second
PAUSE_SECONDS = 1.0  # of images that are not answered one after the other: what a busy machine may bring about
LOAD_SECONDS = 4.0  # more than loading takes in fact: were images to wait for it, that would show on any machine
SLOW_TO_LOAD = ["-c", f"""
from avssl_ros.ros import stopping
stopping.listen()
import sys, time
from avssl_ros.ros import localizer_node
make = localizer_node.make_localizer
localizer_node.make_localizer = lambda values: (time.sleep({LOAD_SECONDS}), make(values))[1]
sys.exit(localizer_node.main())
"""]  # fmt: skip


@pytest.fixture
def adapted(tmp_path) -> Path:
    """The shipped models with other names for what they know, so that it shows who answers."""
    folder = tmp_path / "adapted"
    shutil.copytree(shipped_models(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["labels"] = [label + HERE for label in manifest["labels"]]
    made_by = manifest["made_by"].items()
    manifest["made_by"] = {heard + HERE: [label + HERE for label in seen] for heard, seen in made_by}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def longest_pause(asked: list[tuple[int, int]], answers: list[PointCloud2]) -> float:
    """Seconds of images one after the other that were not answered."""
    answered = {stamp_of(answer) for answer in answers}
    runs = itertools.groupby(asked, lambda stamp: stamp in answered)
    return max((len(list(run)) for is_answered, run in runs if not is_answered), default=0) / RATE


def here(message: String) -> list[bool]:
    """Of each name in a scene, whether the adapted models gave it."""
    scene = json.loads(message.data)
    return [found["label"].endswith(HERE) for found in (*scene["sources"], *scene["unseen"])]


def unusable(folder: Path) -> None:
    """Makes files that are whole, but no networks: found out after the parameter is taken."""
    (folder / "audio.onnx").write_bytes(b"no network")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["audio"]["sha256"] = hashlib.sha256(b"no network").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def models_of(peer) -> str:
    request = GetParameters.Request(names=["models"])
    return peer.call(GetParameters, "/localizer/get_parameters", request).values[0].string_value


def switched(peer, process, models: str, times: int) -> None:
    assert peer.set_parameters("localizer", models=models).successful
    wait_until(lambda: log_of(process).count("going on with the models") == times, 20.0, lambda: log_of(process))


def test_the_node_takes_other_models_over_and_gives_them_back(processes, peer, adapted, tmp_path):
    sound = Path(__file__).resolve().parents[2] / "demo" / "scene.mp4"
    # Small views, so that a busy machine as well keeps up with the images.
    process = processes.start(SLOW_TO_LOAD, audio_source=str(sound), rate=0.0, view_size=128)
    answers, scenes = peer.collect(PointCloud2, "localizer/sources"), peer.collect(String, "localizer/scene")
    with Feed(peer, rate=RATE, size=(640, 320)) as feed:
        wait_until(lambda: answers, 40.0, lambda: log_of(process))
        first = len(feed.stamps)
        switched(peer, process, str(adapted), 1)
        wait_until(lambda: scenes and any(here(scenes[-1])), 30.0, "a name that the other models alone have")
        switched(peer, process, "", 2)
        wait_until(lambda: here(scenes[-1]) and not any(here(scenes[-1])), 30.0, "names of the shipped models")
        asked = feed.stamps[first:]
    assert len(asked) > LOAD_SECONDS * RATE
    assert longest_pause(asked, answers) <= PAUSE_SECONDS, "images were not answered while models were loaded"


def test_what_is_no_model_is_refused_and_nothing_changes(processes, peer, adapted):
    process = processes.start(LOCALIZER, audio_source="topic")
    wait_until(lambda: "ready" in log_of(process), 40.0, lambda: log_of(process))
    with open(adapted / "audio.onnx", "ab") as file:
        file.write(b"altered")
    for models, said in (("/no/such/folder", "no model manifest"), (str(adapted), "was altered")):
        result = peer.set_parameters("localizer", models=models, sensor_timeout=2.0)
        assert not result.successful and said in result.reason
    assert models_of(peer) == ""


def test_other_files_in_the_same_folder_are_read_when_it_is_named_again(processes, peer, adapted):
    process = processes.start(LOCALIZER, audio_source="topic", models=str(adapted))
    wait_until(lambda: "ready" in log_of(process), 40.0, lambda: log_of(process))
    switched(peer, process, str(adapted), 1)
    unusable(adapted)
    assert peer.set_parameters("localizer", models=str(adapted)).successful
    wait_until(lambda: "cannot be used" in log_of(process), 20.0, lambda: log_of(process))
    time.sleep(1.0)  # those in use stay, and nothing is tried again
    assert log_of(process).count("cannot be used") == 1 and models_of(peer) == str(adapted)


def test_models_that_cannot_be_used_are_given_up(processes, peer, adapted):
    process = processes.start(LOCALIZER, audio_source="topic")
    wait_until(lambda: "ready" in log_of(process), 40.0, lambda: log_of(process))
    unusable(adapted)
    assert peer.set_parameters("localizer", models=str(adapted)).successful
    wait_until(lambda: "cannot be used" in log_of(process) and models_of(peer) == "", 20.0, lambda: log_of(process))


def test_two_models_in_a_row_that_cannot_be_used_leave_those_in_use(processes, peer, adapted, tmp_path):
    process = processes.start(LOCALIZER, audio_source="topic")
    wait_until(lambda: "ready" in log_of(process), 40.0, lambda: log_of(process))
    unusable(adapted)
    shutil.copytree(adapted, tmp_path / "others")
    for folder in (adapted, tmp_path / "others"):  # the second before the first is found out
        assert peer.set_parameters("localizer", models=str(folder)).successful
    wait_until(lambda: log_of(process).count("cannot be used") == 2, 20.0, lambda: log_of(process))
    wait_until(lambda: models_of(peer) == "", 5.0, lambda: log_of(process))
    time.sleep(1.5)  # nothing is loaded again and again
    assert log_of(process).count("cannot be used") == 2 and "going on with" not in log_of(process)
