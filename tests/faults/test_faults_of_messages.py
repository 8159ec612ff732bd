"""Cameras and microphones on topics that stop, break, change or jump in time, over real DDS.

The model is replaced by one that is easily foreseen (tests/ros/localizer_with_loudness_model.py); all else is real.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is absent: pip install -e '.[ros]'")

from observer import NOTICE_SECONDS, RECOVERY_SECONDS, STALE_SECONDS, START_SECONDS, Observer, go_through, told
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_graph import LOUDNESS_NODE, Feed, Peer, Processes, jpeg_with_spot, stamp_of, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from avssl_ros.ros import converters

pytestmark = pytest.mark.ros

CAMERA_PROCESS = Path(__file__).with_name("camera_process.py")
PAUSE_SECONDS = 0.5  # between two messages of a sensor that sends many a second


@pytest.fixture(scope="module")
def localizer(domain, tmp_path_factory):
    """One node that listens to the topics, shared by the tests, which all leave it running."""
    processes = Processes(tmp_path_factory.mktemp("localizer"))
    process = processes.start(LOUDNESS_NODE, audio_source="topic")
    yield process
    assert process.poll() is None, process.log.read_text()
    processes.close()


@pytest.fixture
def observer(peer, localizer):
    return Observer(peer)


class Noting:
    """A publisher that notes when it published."""

    def __init__(self, publisher):
        self._publisher = publisher
        self.times: list[float] = []

    def publish(self, message) -> None:
        self.times.append(time.monotonic())
        self._publisher.publish(message)


@pytest.fixture
def feed(peer):
    feed = Feed(peer)
    feed.images, feed.sound = Noting(feed.images), Noting(feed.sound)
    with feed:
        yield feed


def undisturbed(feed: Feed, attempt: Callable[[int], None], attempts: int = 3) -> None:
    """Make an attempt, and another where one failed in which this busy machine held a sensor of the test back.

    A sensor that is silent for sensor_timeout is stale, and its sources end: such an attempt tells nothing of the node.

    Args:
        attempt: is given its number, from 0.
    """
    for number in range(attempts):
        begun = time.monotonic()
        try:
            return attempt(number)
        except AssertionError:
            times = [[begun, *(t for t in list(sensor.times) if t > begun), time.monotonic()]
                     for sensor in (feed.images, feed.sound)]  # fmt: skip
            if max(np.diff(sensor).max() for sensor in times) < PAUSE_SECONDS or number == attempts - 1:
                raise


class CameraProcess:
    """camera_process.py; each method returns the monotonic time from which it counts."""

    def start(self) -> float:
        self._process = subprocess.Popen([sys.executable, CAMERA_PROCESS], stdout=subprocess.PIPE, text=True)
        first = float(self._process.stdout.readline())
        threading.Thread(target=self._process.stdout.read, daemon=True).start()
        return first

    def send(self, number: int) -> float:
        self._process.send_signal(number)
        return time.monotonic()

    def end(self) -> None:
        self.send(signal.SIGTERM)  # SIGKILL would leave its publisher in the graph for 20 s
        self._process.wait(10.0)


@pytest.fixture
def camera_process(feed):
    feed.camera_on = False
    camera = CameraProcess()
    camera.start()
    yield camera
    camera.end()


def switch(feed: Feed, **values):
    """A step that sets attributes of the feed."""

    def step() -> None:
        for name, value in values.items():
            setattr(feed, name, value)

    return step


@pytest.mark.slow
def test_a_camera_that_falls_silent(feed, observer, row):
    go_through(observer, row, "camera is there but sends nothing", switch(feed, camera_on=False),
               switch(feed, camera_on=True), camera="stale", microphone="ok", mode="hearing only",
               hint="the camera is silent")  # fmt: skip
    wait_until(lambda: int(observer.figures["camera"]["recoveries"]) > 0, NOTICE_SECONDS, "the count of recoveries")


def test_what_is_heard_is_said_while_there_is_no_image(feed, observer):
    observer.wait_for_source()
    feed.camera_on = False
    blind = observer.wait_for_state(after=time.monotonic(), mode="hearing only")
    wait_until(lambda: [s for when, s in observer.scenes if when > blind and s["unseen"]], NOTICE_SECONDS, "a sound")
    scene = next(s for when, s in observer.scenes if when > blind and s["unseen"])
    assert scene["sources"] == [] and scene["active"] and scene["unseen"][0]["label"] == "lamp"
    feed.loudness = 0.0
    wait_until(lambda: not observer.scenes[-1][1]["unseen"], NOTICE_SECONDS, "silence")


def test_a_camera_process_that_stands_still(camera_process, feed, observer, row):
    go_through(observer, row, "process of the camera stands still (SIGSTOP)",
               lambda: camera_process.send(signal.SIGSTOP), lambda: camera_process.send(signal.SIGCONT),
               camera="stale", mode="hearing only")  # fmt: skip


def test_images_that_cannot_be_read(feed, observer, row):
    whole = feed.jpeg
    go_through(observer, row, "every image is cut off", switch(feed, jpeg=whole[: len(whole) // 2]),
               switch(feed, jpeg=whole), camera="stale", hint="none can be read")  # fmt: skip


def test_a_microphone_that_falls_silent(feed, observer, row):
    go_through(observer, row, "topic of the sound falls silent", switch(feed, microphone_on=False),
               switch(feed, microphone_on=True), camera="ok", microphone="stale", mode="seeing only",
               hint="no sound for")  # fmt: skip


@pytest.mark.slow
def test_both_sensors_gone(feed, observer, row):
    go_through(observer, row, "both fall silent", switch(feed, camera_on=False, microphone_on=False),
               switch(feed, camera_on=True, microphone_on=True), camera="stale", microphone="stale",
               mode="waiting")  # fmt: skip


@pytest.mark.slow
def test_sound_that_is_no_numbers(feed, observer, row):
    go_through(observer, row, "every sample is NaN", switch(feed, distort=lambda samples: np.nan * samples),
               switch(feed, distort=lambda samples: samples), microphone="stale", mode="seeing only")  # fmt: skip
    assert int(observer.figures["microphone"]["bad sound"]) > 5


@pytest.mark.slow
def test_sound_of_another_clock(feed, observer, row):
    go_through(observer, row, "the sound's clock is wrong by 1000 s", switch(feed, sound_clock_offset=-1000.0),
               switch(feed, sound_clock_offset=0.0), microphone="stale", mode="seeing only",
               hint="same clock")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, distort, hint",
    [
        ("only zeros from the microphone", lambda samples: 0 * samples, "only zeros"),
        ("the microphone is clipped", lambda samples: np.clip(50 * samples, -1, 1), "clipped"),
        ("the microphone has an offset", lambda samples: samples + 0.2, "offset of +0.2"),
    ],
    ids=["zeros", "clipped", "offset"],
)
def test_bad_sound_is_named(feed, observer, row, fault, distort, hint):
    observer.wait_for_source()
    broken = time.monotonic()
    feed.distort = distort
    noticed = observer.wait_for_state(2 * NOTICE_SECONDS, after=broken, hint=hint, microphone="ok", mode="localizing")
    said = told(observer.state)
    if hint == "only zeros":
        time.sleep(0.5)
        observer.assert_nothing_stale(broken, time.monotonic())
    mended = time.monotonic()
    feed.distort = lambda samples: samples
    back = observer.wait_for_source(after=mended)
    wait_until(lambda: observer.state["hint"] == "", 2 * NOTICE_SECONDS, "the hint to go")
    row(fault, said, noticed - broken, back - mended)
    assert back - mended < RECOVERY_SECONDS


def wait_until_it_works(observer: Observer) -> None:
    """It says so from now on, and publishes sources."""
    observer.wait_for_state(START_SECONDS, after=time.monotonic(), mode="localizing")
    observer.wait_for_source(after=time.monotonic())


def assert_nothing_said(observer: Observer, since: float) -> None:
    """No other state than `localizing`."""
    assert not [state for when, state in observer.states if when > since and state["mode"] != "localizing"]


def assert_ends_and_begins(observer: Observer, since: float) -> None:
    """The first two events are the source's offset and its onset."""
    wait_until(lambda: len(observer.kinds_of_events(since)) >= 2, NOTICE_SECONDS, "two events")
    assert observer.kinds_of_events(since)[:2] == ["offset", "onset"]


@pytest.mark.parametrize("seconds", [100.0, -100.0], ids=["ahead", "back"])
def test_a_clock_that_jumps(feed, observer, row, seconds):
    def jump(number: int) -> None:
        wait_until_it_works(observer)
        broken = time.monotonic()
        feed.clock_offset += seconds
        there = time.time() + feed.clock_offset

        def new() -> list[float]:
            return [when for when, m in observer.sources
                    if m.width and abs(converters.stamp_to_seconds(m.header.stamp) - there) < 50]  # fmt: skip

        wait_until(new, RECOVERY_SECONDS, "a source of the new time")
        assert_ends_and_begins(observer, broken)
        assert {stamp_of(m) for when, m in observer.sources if when > broken} <= set(feed.stamps)
        assert_nothing_said(observer, broken)
        way = "ahead" if seconds > 0 else "back"
        row(f"both clocks jump {way} by 100 s", "the source's offset, then its onset; the state stays", None,
            new()[0] - broken)  # fmt: skip

    undisturbed(feed, jump)


def test_another_size_of_image(feed, observer, row):
    def change(number: int) -> None:
        azimuth_deg = (-90.0, 90.0, -90.0)[number]  # the feed begins with 90
        wait_until_it_works(observer)
        changed = time.monotonic()
        feed.jpeg = jpeg_with_spot(((1024, 512), (512, 256))[number % 2], azimuth_deg)

        def new() -> list[float]:
            return [when for when, message in observer.sources if when > changed and message.width and abs(
                converters.cloud_to_records(message)["azimuth"][0] - np.radians(azimuth_deg)) < 0.1]  # fmt: skip

        wait_until(new, RECOVERY_SECONDS, "the source where the new image shows it")
        assert_nothing_said(observer, changed)
        row("camera changes the size of its images", "nothing of it; it goes on", None, new()[0] - changed)

    undisturbed(feed, change)


def test_another_frame_id(feed, observer, row):
    def change(number: int) -> None:
        wait_until_it_works(observer)
        changed = time.monotonic()
        feed.frame_id = f"camera_{number}"

        def new() -> list[float]:
            return [when for when, m in observer.sources if m.width and m.header.frame_id == f"camera_{number}"]

        wait_until(new, RECOVERY_SECONDS, "a source in the new frame")
        assert_ends_and_begins(observer, changed)  # directions are of another mounting
        row("camera changes its frame id", "the source's offset, then its onset in the new frame", None,
            new()[0] - changed)  # fmt: skip

    undisturbed(feed, change)


def test_one_broken_image_is_no_news(feed, observer, row):
    wait_until(lambda: "camera" in observer.figures, START_SECONDS, "diagnostics")

    def break_some(number: int) -> None:
        wait_until_it_works(observer)
        before, broken = int(observer.figures["camera"]["bad images"]), time.monotonic()

        def is_counted() -> bool:
            """One more broken image, between two good ones: the count of them is published once a second."""
            good = len(feed.stamps)
            wait_until(lambda: len(feed.stamps) > good, NOTICE_SECONDS, "a good image")
            time.sleep(0.05)
            feed.images.publish(CompressedImage(header=feed.header(), format="jpeg", data=feed.jpeg[:100]))
            return int(observer.figures["camera"]["bad images"]) > before

        wait_until(is_counted, NOTICE_SECONDS, "the count")
        assert_nothing_said(observer, broken)
        assert "offset" not in observer.kinds_of_events(broken)
        row("single broken JPEG images", "nothing of it; counted in diagnostics", None, 0.0)

    undisturbed(feed, break_some)


def test_sound_at_another_rate(feed, observer, row):
    observer.wait_for_source()
    changed = time.monotonic()
    feed.sample_rate = 44100
    observer.wait_for_state(RECOVERY_SECONDS, after=changed, mode="localizing")
    time.sleep(0.5)
    back = observer.wait_for_source(RECOVERY_SECONDS, after=changed + 0.5)
    row("the sound changes its sample rate", "the source may end and begin anew; the state stays", None, back - changed)


@pytest.mark.slow
def test_sensors_whose_process_ends_and_begins_anew(localizer, peer, row):
    """What comes back offers another QoS: a subscription made for the old one would stay silent."""
    observer = Observer(peer)
    sensors = ExitStack()

    def begin(reliability: ReliabilityPolicy = ReliabilityPolicy.BEST_EFFORT) -> None:
        robot = Peer()
        sensors.callback(robot.close)
        sensors.enter_context(Feed(robot, sound_reliability=reliability))

    with sensors:
        begin(ReliabilityPolicy.RELIABLE)
        go_through(observer, row, "publishers of images and sound end; others begin, of another QoS", sensors.close,
                   begin, camera="absent", microphone="absent", mode="waiting", hint="publisher is gone")  # fmt: skip


@pytest.mark.slow
def test_an_image_that_waited_for_too_long_is_not_answered(feed, peer, processes, row):
    processes.start(LOUDNESS_NODE, "-r", "__node:=slow", audio_source="topic", rate=0.5)
    observer = Observer(peer, "slow")

    def waits() -> bool:
        """Turn the camera off soon after an answer; whether its last image is too old by its turn, 2 s after that."""
        feed.camera_on = True
        answered = observer.wait_for_source(after=time.monotonic())
        wait_until(lambda: feed.images.times[-1] > answered, NOTICE_SECONDS, "the next image")
        feed.camera_on = False
        time.sleep(0.1)  # one may just be published
        return feed.images.times[-1] < answered + 0.6

    wait_until(waits, START_SECONDS, "an image that waits for its turn")
    broken, last = feed.images.times[-1], feed.stamps[-1]
    wait_until(lambda: int(observer.figures["processing"]["too late"]) > 0, 10.0, "an image that is too late")
    assert not [when for when, message in observer.sources if when > broken + STALE_SECONDS and message.width]
    assert last not in [stamp_of(message) for _, message in observer.sources]
    row("camera stops while its last image waits (rate 0.5)", "no answer to that image; counted in diagnostics", None,
        None)  # fmt: skip


@pytest.mark.slow
def test_a_recording_that_stands_still_and_begins_anew(feed, peer, processes, row):
    """use_sim_time and /clock, as by `ros2 bag play --clock --loop`."""
    processes.start(LOUDNESS_NODE, "-r", "__node:=bag", audio_source="topic", use_sim_time=True)
    publisher = peer.node.create_publisher(Clock, "/clock", 10)
    stopping, playing = threading.Event(), threading.Event()
    feed.clock_offset = -1_000_000.0
    observer = Observer(peer, "bag", feed.clock_offset)

    def play() -> None:
        while not stopping.wait(0.02):
            if playing.is_set():
                publisher.publish(Clock(clock=converters.seconds_to_stamp(time.time() + feed.clock_offset)))

    def stand_still() -> None:
        playing.clear()
        feed.camera_on = feed.microphone_on = False

    def go_on() -> None:
        playing.set()
        feed.camera_on = feed.microphone_on = True

    thread = threading.Thread(target=play)
    thread.start()
    try:
        go_on()
        still, again = go_through(observer, row, "a recording with /clock stands still", stand_still, go_on, lasts=2.5,
                                  mode="waiting")  # fmt: skip
        said = [state for when, state in observer.states if still < when < again and state["mode"] == "waiting"]
        assert len(said) >= 3, "the state must be repeated though the clock stands still"
        again = time.monotonic()
        feed.clock_offset -= 60.0
        wait_until(lambda: {"offset", "onset"} <= set(observer.kinds_of_events(again)), RECOVERY_SECONDS, "an onset")
        row("a recording with /clock begins anew", "the source's offset, then its onset; the state stays", None,
            next(when for when, event in observer.events if when > again and event["event"] == "onset") - again)
    finally:
        stopping.set()
        thread.join()


@pytest.mark.slow
def test_raw_images_that_change_their_encoding(feed, peer, processes, row):
    feed.camera_on = False
    processes.start(LOUDNESS_NODE, "-r", "__node:=raw", audio_source="topic", image_transport="raw",
                    image_reliability="reliable")  # fmt: skip
    observer = Observer(peer, "raw")
    feed.images = Noting(peer.node.create_publisher(Image, "image", QoSProfile(depth=5)))
    encoding, stopping = ["rgb8"], threading.Event()
    grey = np.full((64, 128), 40, np.uint8)
    grey[30:34, 30:34] = 255
    pixels = {"rgb8": cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), "bgra8": cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA),
              "bayer_of_mars": grey}  # fmt: skip

    def film() -> None:
        while not stopping.wait(0.1):
            name, data = encoding[0], pixels[encoding[0]]
            step = data.size // 64
            image = Image(header=feed.header(), height=64, width=128, encoding=name, step=step, data=data.tobytes())
            feed.images.publish(image)

    def change(number: int) -> None:
        wait_until_it_works(observer)
        changed = time.monotonic()
        encoding[0] = ("bgra8", "rgb8")[number % 2]
        back = observer.wait_for_source(after=changed + 0.3)
        assert_nothing_said(observer, changed)
        row("camera changes to another encoding", "nothing of it; it goes on", None, back - changed - 0.3)

    thread = threading.Thread(target=film)
    thread.start()
    try:
        undisturbed(feed, change)
        go_through(observer, row, "camera changes to an encoding that nobody knows",
                   lambda: encoding.__setitem__(0, "bayer_of_mars"), lambda: encoding.__setitem__(0, "rgb8"),
                   camera="stale", hint="none can be read")  # fmt: skip
    finally:
        stopping.set()
        thread.join()


def test_the_state_waits_for_who_comes_late(localizer, peer):
    time.sleep(0.5)
    observer = Observer(peer)
    observer.wait_for_state(START_SECONDS)
    assert set(observer.state) == {"camera", "microphone", "mode", "since", "hint"}
