"""The node `localizer` as a process over DDS: what it answers, what it survives, how it ends.

The model is replaced by one that is easily foreseen (localizer_with_loudness_model.py); everything else is real.
"""

from __future__ import annotations

import itertools
import json
import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_graph import LOUDNESS_NODE, Feed, Peer, Processes, jpeg_with_spot, log_of, stamp_of, terminate, wait_until
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String
from visualization_msgs.msg import Marker, MarkerArray

from avssl_ros.ros import converters

pytestmark = pytest.mark.ros

START_SECONDS = 30.0  # a busy machine takes its time to import and to discover


@pytest.fixture(scope="module")
def localizer(domain, tmp_path_factory):
    """One node that listens to the topics, shared by the tests that leave it running."""
    processes = Processes(tmp_path_factory.mktemp("localizer"))
    process = processes.start(LOUDNESS_NODE, audio_source="topic")
    yield process
    processes.close()


class Listener:
    """Everything the localizer publishes, as it arrives."""

    def __init__(self, peer: Peer):
        self.sources = peer.collect(PointCloud2, "localizer/sources")
        self.direction = peer.collect(PoseStamped, "localizer/direction")
        self._events = peer.collect(String, "localizer/events")
        self.markers = peer.collect(MarkerArray, "localizer/markers")
        self.maps = peer.collect(Image, "localizer/map")
        self._diagnostics = peer.collect(DiagnosticArray, "/diagnostics")

    @property
    def events(self) -> list[str]:
        return [json.loads(message.data)["event"] for message in self._events]

    def sounding(self) -> bool:
        return bool(self.sources) and self.sources[-1].width > 0

    def wait_for_source(self) -> None:
        wait_until(self.sounding, START_SECONDS, "a source")

    def figure(self, part: str, name: str) -> int:
        """What the newest diagnosis of `part` counts under this name, 0 before the first."""
        statuses = [status for message in list(self._diagnostics) for status in message.status]
        return next((int(figures(s)[name]) for s in reversed(statuses) if s.name.endswith(part)), 0)

    def wait_for_diagnosis(self, part: str, level: bytes | None, text: str = "") -> DiagnosticStatus:
        """A status of `part` with this level (None: any) and text that is published from now on."""
        seen = len(self._diagnostics)

        def found():
            statuses = [status for message in self._diagnostics[seen:] for status in message.status]
            return [s for s in statuses if s.name.endswith(part) and level in (None, s.level) and text in s.message]

        def said() -> str:
            statuses = [status for message in self._diagnostics[seen:] for status in message.status]
            return "; ".join(sorted({f"{s.level[0]} {s.message}" for s in statuses if s.name.endswith(part)}))

        wait_until(found, START_SECONDS, lambda: f"the diagnosis '{text}' of the {part}, which said: {said()}")
        return found()[-1]


@pytest.fixture
def listener(peer):
    return Listener(peer)


@pytest.fixture
def patient(localizer, peer):
    """The localizer's sources are not ended by a pause of the machine."""
    assert peer.set_parameter("localizer", "sensor_timeout", 10.0).successful
    yield
    assert peer.set_parameter("localizer", "sensor_timeout", 1.0).successful


def figures(status: DiagnosticStatus) -> dict[str, str]:
    return {value.key: value.value for value in status.values}


def answered_in_a_row(asked: list[tuple[int, int]], answered: set[tuple[int, int]]) -> int:
    """The most images one after the other that were all answered."""
    runs = itertools.groupby(asked, lambda stamp: stamp in answered)
    return max((len(list(run)) for is_answered, run in runs if is_answered), default=0)


def test_every_image_is_answered_with_its_own_stamp_and_readable_results(localizer, patient, peer, listener):
    def answers() -> dict:
        """Those with a source, by stamp: one that ends the sources has a time of its own."""
        return {stamp_of(message): message for message in list(listener.sources) if message.width}

    def are_of_one_image() -> bool:
        outputs = (listener.direction, listener.maps, [m.markers[0] for m in list(listener.markers) if m.markers])
        return bool(answers().keys() & set.intersection(*({stamp_of(m) for m in list(output)} for output in outputs)))

    with Feed(peer, azimuth_deg=90.0) as feed:
        wait_until(lambda: len(answers()) >= 25, START_SECONDS, "25 answers")
        # A busy machine drops images now and then, a node that cannot keep up or leaves some out does it all the time.
        wait_until(lambda: answered_in_a_row(list(feed.stamps), set(answers())) >= 10, START_SECONDS,
                   "answers to ten images in a row")  # fmt: skip
        wait_until(are_of_one_image, START_SECONDS, "a direction, a map and markers with the stamp of an answer")
        received = list(listener.sources)
        processing = figures(listener.wait_for_diagnosis("localizer: processing", None))
    answered = answers()
    first = next(number for number, message in enumerate(received) if message.width)
    identities = [[int(i) for i in converters.cloud_to_records(message)["id"]] for message in received[first:]]
    assert identities == len(identities) * [identities[0]], "the source did not go on as one"
    assert answered.keys() <= set(feed.stamps), "a result carries a stamp that no image had"
    taken = int(processing["received"]) - int(processing["dropped"])
    assert int(processing["answered"]) >= 0.8 * taken
    record = converters.cloud_to_records(answered[min(answered)])[0]
    assert abs(np.degrees(record["azimuth"]) - 90) < 5 and record["y"] > 0.9
    assert listener.direction[-1].header.frame_id == "camera"
    map_ = converters.image_to_map(next(m for m in listener.maps if stamp_of(m) in answered))
    assert map_.shape == (32, 64) and map_.max() > 0.5
    markers = next(m.markers for m in listener.markers if any(stamp_of(marker) in answered for marker in m.markers))
    assert {m.ns for m in markers if m.action == Marker.ADD} == {"source", "label"}


def test_sources_end_when_the_camera_stops(localizer, peer, listener):
    with Feed(peer) as feed:
        listener.wait_for_source()
        feed.camera_on = False
        wait_until(lambda: not listener.sounding(), 5.0, "an empty ~/sources")
        time.sleep(1.0)
        answers = len(listener.sources)
        time.sleep(1.5)
    assert stamp_of(listener.sources[-1]) > feed.stamps[-1]
    assert len(listener.sources) == answers, "something was published without an image"
    assert listener.events[-1] == "offset"
    assert {m.action for m in listener.markers[-1].markers} == {Marker.DELETE}
    assert converters.image_to_map(listener.maps[-1]).max() == 0


def test_sources_end_when_the_sound_stops_while_images_go_on(localizer, peer, listener):
    with Feed(peer) as feed:
        listener.wait_for_source()
        feed.microphone_on = False
        wait_until(lambda: not listener.sounding(), 5.0, "an empty ~/sources")
        listener.wait_for_diagnosis("microphone", DiagnosticStatus.STALE)
        assert not listener.sounding() and listener.events[-1] == "offset"
        answers = len(listener.sources)
        wait_until(lambda: len(listener.sources) > answers + 5, 5.0, "answers without sound")
        feed.microphone_on = True
        listener.wait_for_source()


def test_bad_images_and_bad_sound_are_counted_and_survived(localizer, peer, listener):
    square = jpeg_with_spot((256, 256), 0.0)  # not the 2:1 of a whole sphere
    bad_images = itertools.cycle((b"", b"\xff\xd8 cut off", b"no picture", square))

    def nothing_sounds_while_bad_images_arrive() -> bool:
        feed.images.publish(CompressedImage(header=feed.header(), format="jpeg", data=next(bad_images)))
        time.sleep(0.2)
        return listener.figure("localizer: camera", "bad images") >= 4 and not listener.sounding()

    with Feed(peer) as feed:
        listener.wait_for_source()
        feed.camera_on = False
        wait_until(nothing_sounds_while_bad_images_arrive, START_SECONDS,
                   "four images to be counted as bad, and sources to end with nothing but those")  # fmt: skip
        feed.sound.publish(PointCloud2(header=feed.header()))
        feed.sound.publish(converters.sound_to_cloud(np.full(800, np.nan, np.float32), 16000, feed.header()))
        feed.camera_on = True
        listener.wait_for_source()
        listener.wait_for_diagnosis("camera", DiagnosticStatus.WARN, "cannot be read")
        wait_until(lambda: listener.figure("localizer: microphone", "bad sound") >= 2, START_SECONDS, "bad sound")
        microphone = listener.wait_for_diagnosis("microphone", DiagnosticStatus.OK)
    assert int(figures(microphone)["bad sound"]) == 2
    assert "left out" in log_of(localizer) and localizer.poll() is None


def test_why_images_without_a_stamp_are_left_out_is_said_as_well(processes, peer, listener):
    process = processes.start(LOUDNESS_NODE, "-r", "__node:=unstamped", audio_source="topic")
    sources = peer.collect(PointCloud2, "unstamped/sources")

    def unstamped_are_answered() -> bool:
        """By enough answers for the p95 of the latencies of the last ten seconds to tell of theirs as well."""
        return sum(stamp_of(message) == (0, 0) for message in list(sources)) > 10

    with Feed(peer) as feed:
        wait_until(lambda: any(message.width for message in sources), START_SECONDS, "a source")
        feed.header = lambda: Header(frame_id="camera")  # the camera goes on, but stamps nothing any more
        wait_until(unstamped_are_answered, START_SECONDS, "answers to images without a stamp")
        feed.jpeg, readable = jpeg_with_spot((256, 144), 0.0), feed.jpeg
        wait_until(lambda: "left out" in log_of(process), START_SECONDS, lambda: log_of(process))
        feed.jpeg = readable
        processing = figures(listener.wait_for_diagnosis("unstamped: processing", DiagnosticStatus.OK))
    assert "no stamp" in log_of(process) and "twice as wide as high" in log_of(process)
    assert processing["failures"] == "0" and 0.0 <= float(processing["latency p95"]) < 5.0


def test_results_in_an_optical_frame_are_warned_of(localizer, peer, listener):
    with Feed(peer) as feed:
        feed.frame_id = "head_camera_color_optical_frame"
        listener.wait_for_diagnosis("camera", DiagnosticStatus.WARN, "x is to the right")
        assert peer.set_parameter("localizer", "frame_id", "head_camera_link").successful
        listener.wait_for_diagnosis("camera", DiagnosticStatus.OK)
        assert peer.set_parameter("localizer", "frame_id", "").successful


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("rate", 500.0, ["0", "120"]),
        ("onset_confidence", -0.1, ["0", "1"]),
        ("sensor_timeout", float("nan"), ["0.2", "60"]),
        ("offset_confidence", 0.95, ["offset_confidence", "onset_confidence"]),
        ("projection", "perspective", ["read-only"]),
        ("rate", "fast", ["type"]),
    ],
)
def test_parameters_that_are_not_allowed_are_refused_with_a_reason(localizer, peer, name, value, said):
    result = peer.set_parameter("localizer", name, value)
    assert not result.successful
    assert all(word in result.reason for word in said), result.reason


def test_thresholds_and_rate_apply_while_the_node_runs(localizer, peer, listener):
    with Feed(peer, rate=20.0) as feed:
        feed.loudness = 0.08  # 80 % confidence for the loudness model
        listener.wait_for_source()
        assert peer.set_parameter("localizer", "onset_confidence", 0.99).successful
        wait_until(lambda: not listener.sounding(), 5.0, "the source to fall below the new threshold")
        assert peer.set_parameter("localizer", "onset_confidence", 0.5).successful
        listener.wait_for_source()
        assert peer.set_parameter("localizer", "rate", 4.0).successful
        changed = time.time()

        def moments() -> list[float]:
            stamps = [converters.stamp_to_seconds(message.header.stamp) for message in list(listener.sources)]
            return [stamp for stamp in stamps if stamp > changed][1:9]  # the first was still due by the old rate

        wait_until(lambda: len(moments()) == 8, 10.0, "answers at the new rate")
        # 1.75 s at 4 Hz and 0.47 s at 15 Hz. After a pause of the machine two may follow on each other sooner.
        assert moments()[-1] - moments()[0] > 1.0 and np.median(np.diff(moments())) < 0.5
        assert peer.set_parameter("localizer", "rate", 15.0).successful


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_sources_and_the_node_with_status_0(processes, peer, listener, number):
    process = processes.start(
        LOUDNESS_NODE, "-r", "__ns:=/other", "-r", "image/compressed:=/image/compressed", "-r", "audio:=/audio",
        audio_source="topic",
    )  # fmt: skip
    sources = peer.collect(PointCloud2, "/other/localizer/sources")
    with Feed(peer):
        wait_until(lambda: any(message.width for message in sources), START_SECONDS, "a source")
        status, seconds = terminate(process, number)
    assert (status, seconds < 4.0) == (0, True), (status, seconds, log_of(process))  # 0.5 s where nothing else runs
    wait_until(lambda: sources[-1].width == 0, 2.0, "an empty ~/sources at the end")
    assert "Traceback" not in log_of(process)


@pytest.mark.parametrize(
    "parameters, said",
    [
        ({"rate": 500.0}, "120"),
        ({"rate": 10}, "10.0"),
        ({"image_transport": "h264"}, "'compressed', 'raw'"),
        ({"onset_confidence": 0.2, "offset_confidence": 0.6}, "offset_confidence"),
        ({"audio_source": "no/such/sound.wav"}, "no/such/sound.wav"),
    ],
)
def test_a_wrong_start_says_why_and_exits_with_status_1(processes, parameters, said):
    process = processes.start(LOUDNESS_NODE, **{"audio_source": "topic", **parameters})
    assert process.wait(timeout=START_SECONDS) == 1
    last_line = log_of(process).strip().splitlines()[-1]
    assert last_line.startswith("cannot start:") and said in last_line


def test_without_a_microphone_the_node_lives_and_says_so(processes, peer, listener):
    process = processes.start(LOUDNESS_NODE, "-r", "__node:=deaf", microphone="no such microphone")
    sources = peer.collect(PointCloud2, "deaf/sources")
    with Feed(peer):
        wait_until(lambda: sources, START_SECONDS, "an answer")
        status = listener.wait_for_diagnosis("deaf: microphone", DiagnosticStatus.ERROR)
    assert all(message.width == 0 for message in sources) and status.message
    assert process.poll() is None


@pytest.mark.debian
def test_a_microphone_is_heard_lost_and_heard_again(pulse, long_tone, processes, peer, listener):
    processes.start(LOUDNESS_NODE, "-r", "__node:=ear", audio_source="microphone")
    sources = peer.collect(PointCloud2, "ear/sources")

    def sounding() -> bool:
        return bool(sources) and sources[-1].width > 0

    with Feed(peer):
        player = pulse.play(long_tone, in_background=True)
        wait_until(sounding, START_SECONDS, "the tone in the microphone")
        listener.wait_for_diagnosis("ear: microphone", DiagnosticStatus.OK, "microphone '")
        pulse.kill()
        player.wait()
        wait_until(lambda: not sounding(), 10.0, "the source to end with the microphone")
        listener.wait_for_diagnosis("ear: microphone", DiagnosticStatus.ERROR, "no default microphone")
        pulse.start()
        player = pulse.play(long_tone, in_background=True)
        wait_until(sounding, START_SECONDS, "the tone in the microphone that is back")
        player.kill()


def test_sound_of_another_clock_is_diagnosed_and_no_source_is_made_up(localizer, peer, listener):
    with Feed(peer) as feed:
        feed.sound_clock_offset = -1000.0
        listener.wait_for_diagnosis("localizer: microphone", DiagnosticStatus.ERROR, "same clock")
        assert not listener.sounding()


def test_an_audio_topic_of_another_type_is_named_by_a_node_that_names_its_namespace(processes, peer, listener):
    remaps = ("-r", "__node:=fed", "-r", "__ns:=/front", "-r", "audio:=chatter")
    processes.start(LOUDNESS_NODE, *remaps, audio_source="topic")
    peer.node.create_publisher(String, "/front/chatter", 1)
    said = "/front/chatter has type std_msgs/msg/String"
    status = listener.wait_for_diagnosis("fed: microphone", DiagnosticStatus.ERROR, said)
    assert status.name == "front/fed: microphone"


def test_raw_images_are_read_where_asked_for(processes, peer):
    processes.start(
        LOUDNESS_NODE, "-r", "__node:=raw",
        audio_source="topic", image_transport="raw", image_reliability="reliable", frame_id="head",
    )  # fmt: skip
    sources = peer.collect(PointCloud2, "raw/sources")
    publisher = peer.node.create_publisher(Image, "image", QoSProfile(depth=5))
    image = np.zeros((64, 128, 3), np.uint8)
    image[32, 32] = 255
    with Feed(peer) as feed:
        wait_until(lambda: publisher.get_subscription_count(), START_SECONDS, "the raw subscription")

        def found_in_one_more() -> bool:
            message = Image(header=feed.header(), height=64, width=128, encoding="rgb8", step=384, data=image.tobytes())
            publisher.publish(message)
            time.sleep(0.1)
            return any(message.width for message in sources)

        wait_until(found_in_one_more, START_SECONDS, "a source in raw images")
    found = next(message for message in sources if message.width)
    assert found.header.frame_id == "head"
    assert abs(np.degrees(converters.cloud_to_records(found)["azimuth"][0]) - 90) < 3


def test_a_camera_that_offers_another_reliability_is_diagnosed(processes, peer, listener):
    processes.start(
        LOUDNESS_NODE, "-r", "__node:=strict", "-r", "image/compressed:=lossy/compressed",
        audio_source="topic", image_reliability="reliable",
    )  # fmt: skip
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = peer.node.create_publisher(CompressedImage, "lossy/compressed", best_effort)
    wait_until(lambda: peer.node.count_subscribers("lossy/compressed"), START_SECONDS, "the subscription")
    publisher.publish(CompressedImage(header=Header(), format="jpeg", data=b""))
    status = listener.wait_for_diagnosis("strict: camera", DiagnosticStatus.ERROR, "no image arrives")
    assert "try image_reliability:=best_effort" in status.message


def test_a_camera_on_the_other_transport_is_diagnosed(processes, peer, listener):
    processes.start(LOUDNESS_NODE, "-r", "__node:=lost", "-r", "image:=elsewhere", "-r",
                    "image/compressed:=elsewhere/compressed", audio_source="topic")  # fmt: skip
    peer.node.create_publisher(Image, "elsewhere", QoSProfile(depth=1))
    listener.wait_for_diagnosis("lost: camera", DiagnosticStatus.ERROR, "set image_transport:=raw")
