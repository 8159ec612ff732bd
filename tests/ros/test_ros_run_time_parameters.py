"""Views, microphone and thresholds changed while the node runs: all or nothing, with the range in the refusal."""

from __future__ import annotations

import json
import time
from pathlib import Path

import media
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters
from ros_graph import LOCALIZER, LOUDNESS_NODE, Feed, Peer, Processes, log_of, wait_until
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String

pytestmark = pytest.mark.ros

START_SECONDS = 30.0


@pytest.fixture(scope="module")
def localizer(domain, tmp_path_factory):
    processes = Processes(tmp_path_factory.mktemp("localizer"))
    process = processes.start(LOUDNESS_NODE, audio_source="topic")
    yield process
    assert process.poll() is None, log_of(process)
    processes.close()


@pytest.fixture
def sources(peer):
    return peer.collect(PointCloud2, "localizer/sources")


def value_of(peer: Peer, name: str):
    request = GetParameters.Request(names=[name])
    value = peer.call(GetParameters, "/localizer/get_parameters", request).values[0]
    return {2: value.integer_value, 3: value.double_value, 8: list(value.double_array_value)}[value.type]


def wait_for_source(sources: list) -> None:
    begun = len(sources)
    wait_until(lambda: any(message.width for message in sources[begun:]), START_SECONDS, "a source")


def end_and_begin(events: list[String]) -> bool:
    """Whether there is an onset behind an offset. The onset from before may come late, and stand before both."""
    kinds = [json.loads(message.data)["event"] for message in events]
    return "offset" in kinds and "onset" in kinds[kinds.index("offset") :]


@pytest.mark.parametrize(
    "values, said",
    [
        ({"rate": 5.0, "view_fov_deg": 500.0}, ["30", "150"]),
        ({"rate": 5.0, "view_azimuths_deg": [0.0, 400.0]}, ["view_azimuths_deg", "[-360, 360]"]),
        ({"rate": 5.0, "view_size": 100}, ["view_size", "multiple of 32 from 64 to 1024", "100"]),
        ({"view_azimuths_deg": [0.0, 180.0], "views_per_frame": 3}, ["views_per_frame", "0..2", "3"]),
        ({"rate": 5.0, "onset_confidence": 0.1}, ["offset_confidence", "onset_confidence"]),
        ({"rate": 5.0, "audio_source": "/no/such/sound.wav"}, ["/no/such/sound.wav does not exist"]),
        ({"rate": 5.0, "audio_source": "~/no/such.wav"}, [f"{Path.home()}/no/such.wav does not exist"]),
        ({"rate": 5.0, "models": "~/no/such"}, [f"{Path.home()}/no/such"]),
        ({"rate": 5.0, "audio_source": __file__}, ["cannot be opened as video or sound"]),
        ({"rate": 5.0, "image_transport": "raw"}, ["read-only"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_all_or_nothing_with_what_is_allowed(localizer, peer, values, said):
    result = peer.set_parameters("localizer", **values)
    assert not result.successful and all(word in result.reason for word in said), result.reason
    assert value_of(peer, "rate") == 15.0
    assert value_of(peer, "view_azimuths_deg") == [0.0, 90.0, 180.0, 270.0]


def test_other_views_end_the_sources_and_find_them_again(localizer, peer, sources):
    events = peer.collect(String, "localizer/events")
    with Feed(peer):
        wait_for_source(sources)
        told = len(events)
        changed = peer.set_parameters("localizer", view_azimuths_deg=[0.0, 180.0], views_per_frame=1, view_size=128)
        assert changed.successful, changed.reason
        wait_until(lambda: end_and_begin(events[told:]), 5.0, "an offset and an onset")
        azimuths = [0.0, 90.0, 180.0, 270.0]
        assert peer.set_parameters("localizer", view_azimuths_deg=azimuths, views_per_frame=0, view_size=0).successful
        wait_for_source(sources)


def test_sound_of_a_file_takes_the_place_of_a_topic_and_gives_it_back(localizer, peer, sources, tmp_path):
    sound = media.write_wav(tmp_path / "tone.wav", media.tone(3.0, 16000), 16000)
    with Feed(peer) as feed:
        feed.loudness = 0.0
        time.sleep(1.0)
        assert peer.set_parameter("localizer", "audio_source", str(sound)).successful
        wait_for_source(sources)
        assert peer.set_parameter("localizer", "audio_source", "topic").successful
        wait_until(lambda: sources[-1].width == 0, 5.0, "silence")
        feed.loudness = 0.2
        wait_for_source(sources)
        assert peer.node.count_subscribers("/audio") == 1


@pytest.mark.debian
def test_another_microphone_while_the_node_runs(pulse, long_tone, processes, peer):
    """The sound server begins with the test, so the node is one of its own."""
    processes.start(LOUDNESS_NODE, "-r", "__node:=ear", audio_source="microphone", microphone="no such microphone")
    sources = peer.collect(PointCloud2, "ear/sources")
    states = peer.collect(String, "ear/state")
    with Feed(peer):
        player = pulse.play(long_tone, in_background=True)
        wait_until(lambda: states and "no usable microphone 'no such" in states[-1].data, START_SECONDS, "the state")
        assert peer.set_parameter("ear", "microphone", "pulse").successful
        wait_until(lambda: sources and sources[-1].width, START_SECONDS, "the tone")
        assert peer.set_parameter("ear", "microphone", "no such microphone").successful
        wait_until(lambda: sources[-1].width == 0, 5.0, "the source to end")
        player.kill()
        player.wait()


def test_the_shipped_models_look_through_other_views_while_they_run(processes, peer):
    process = processes.start(LOCALIZER, "-r", "__node:=real", audio_source="topic")
    sources = peer.collect(PointCloud2, "real/sources")
    diagnostics = peer.collect(DiagnosticArray, "/diagnostics")

    def processing(messages: list[DiagnosticArray]) -> list:
        """What this node says: the other one of this file is there as well."""
        return [status for message in messages for status in message.status if status.name == "real: processing"]

    with Feed(peer, size=(1280, 640)):
        wait_until(lambda: len(sources) > 5, START_SECONDS, "answers")
        views = {"view_azimuths_deg": [45.0, 225.0], "view_fov_deg": 80.0, "view_size": 128, "views_per_frame": 1,
                 "view_projection": "cylindrical"}  # fmt: skip
        changed = peer.set_parameters("real", **views, onset_confidence=0.6)
        assert changed.successful, changed.reason
        answered, said = len(sources), len(diagnostics)
        wait_until(lambda: len(sources) > answered + 10, START_SECONDS, "answers with other views")
        wait_until(lambda: len(processing(diagnostics[said:])) > 1, START_SECONDS, "diagnostics")
    values = {value.key: value.value for value in processing(diagnostics)[-1].values}
    assert values["failures"] == "0", log_of(process)
