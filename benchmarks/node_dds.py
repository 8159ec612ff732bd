"""The real node over DDS: the share of images it answers, with which stamp, how long that takes, and what it costs.

    python benchmarks/node_dds.py --seconds 60 --json benchmarks/out/node_dds.json
    python benchmarks/node_dds.py --rates 5 10 15 30                                  # images a second, a run each
    python benchmarks/node_dds.py --seconds 600                                       # does its memory grow?

A camera publishes the demo scene as 1920x960 JPEG images with its sound; the node `localizer` with the shipped models
answers; this program subscribes to what a user's program would, map and markers included. All three are processes of
their own, on this machine, in a DDS domain of their own. The camera delivers JPEG as most do: its images are encoded
before the clock runs. Columns, a row for each rate:

published, answered, dropped   images; one that a newer one replaced while the node was busy is dropped, all others are
                               accepted and must be answered
p50, p95, p99   milliseconds from the image's stamp to the arrival of its `~/sources` here
cores           processor time of the node per second, as Linux counts it
memory          growth of the node's resident memory after the first minute (the first third of a shorter run), MB

Beside them: seconds from the start of the node's process until it publishes, its processor time without images, and
with images at the first rate while nobody subscribes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

START_SECONDS = 120.0
IDLE_SECONDS = 10.0
SETTLED_SECONDS = 60.0
QUIET_SECONDS = 1.5  # after the last image: what is still unanswered then will not be answered
COUNTERS = "received", "answered", "dropped", "bad images", "bad sound"


class Recorder:
    """What arrives, by stamp, with the time of arrival; plus the node's own counters."""

    def __init__(self, node):
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import CompressedImage, Image, PointCloud2
        from visualization_msgs.msg import MarkerArray

        from avssl_ros.ros.converters import image_to_map

        self._image_to_map, self._node, self._clock = image_to_map, node, node.get_clock()
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.begin()
        self._subscriptions = [
            node.create_subscription(CompressedImage, "image/compressed", lambda m: self._note(self.images, m), 100),
            node.create_subscription(PointCloud2, "localizer/sources", self._on_sources, 100),
            node.create_subscription(Image, "localizer/map", self._on_map, 100),
            node.create_subscription(MarkerArray, "localizer/markers", self._on_markers, 100),
        ]
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def begin(self) -> None:
        """Forget what came so far; the node's counters go on, so they are kept to compare with."""
        self.images, self.sources, self.maps = {}, {}, {}
        self.empty: set[tuple[int, int]] = set()  # stamps of answers without a source
        self.marker_messages = self.sources_seen = 0
        self.before = dict(self.counters)

    def leave(self) -> None:
        """No subscriber of images or answers any more."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def counted(self, name: str) -> int:
        """By the node itself, since `begin`."""
        return self.counters[name] - self.before[name]

    def _note(self, where: dict, message) -> None:
        where[message.header.stamp.sec, message.header.stamp.nanosec] = self._clock.now().nanoseconds * 1e-9

    def _on_sources(self, message) -> None:
        self._note(self.sources, message)
        self.sources_seen += message.width
        if message.width == 0:
            self.empty.add((message.header.stamp.sec, message.header.stamp.nanosec))

    def _on_map(self, message) -> None:
        map_ = self._image_to_map(message)
        assert map_.min() >= 0 and map_.max() <= 1, "the map leaves [0, 1]"
        self._note(self.maps, message)

    def _on_markers(self, message) -> None:
        self.marker_messages += 1

    def _on_diagnostics(self, message) -> None:
        values = {value.key: value.value for status in message.status for value in status.values}
        if all(name in values for name in COUNTERS):
            self.counters = {name: int(values[name]) for name in COUNTERS}


class Usage:
    """Processor time and memory of a process, from /proc."""

    def __init__(self, pid: int):
        self._folder = Path(f"/proc/{pid}")

    def seconds(self) -> float:
        """Processor time so far, of all threads."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Resident memory."""
        return int((self._folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def be_camera(arguments: list[str]) -> int:
    """The process of the camera: a scene player whose images are encoded beforehand, so that any rate is cheap."""
    import cv2
    from sensor_msgs.msg import CompressedImage
    from std_msgs.msg import Header

    from avssl_ros.ros import converters
    from avssl_ros.ros.runtime import run
    from avssl_ros.ros.scene_player import ScenePlayer

    class Camera(ScenePlayer):
        def _play(self) -> None:
            self._encoded = [self._encode(image) for _, image in self._video]
            super()._play()

        def _encode(self, image):
            width = self._values["width"]
            image = cv2.resize(image, (width, width // 2), interpolation=cv2.INTER_AREA)
            return converters.rgb_to_compressed(image, Header(), self._values["jpeg_quality"]).data

        def _make_images(self):
            for number in range(round(self._length * self._values["rate"])):
                captured = number / self._values["rate"]
                data = self._encoded[min(int(captured * self._video.fps), len(self._encoded) - 1)]
                yield captured, self._images, CompressedImage(header=self._header(captured), format="jpeg", data=data)

    return run(Camera, arguments)


@contextmanager
def running(program: list[str], **parameters):
    """A node as a process, ended by SIGTERM; fails where its exit status is not 0."""
    ros = [item for name, value in parameters.items() for item in ("-p", f"{name}:={value}")]
    process = subprocess.Popen([sys.executable, *program, "--ros-args", *ros])
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        if status := process.wait(timeout=15):
            raise SystemExit(f"{' '.join(program)} ended with status {status}")
    finally:
        if process.poll() is None:
            process.kill()


class Bench:
    """One node under test, and this program's own node to spin."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.node = rclpy.create_node("node_dds")
        self.recorder = Recorder(self.node)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def spin_until(self, condition, limit: float) -> None:
        until = time.monotonic() + limit
        while not condition():
            if time.monotonic() > until:
                raise SystemExit(f"gave up after {limit} s: {len(self.recorder.images)} images, "
                                 f"{len(self.recorder.sources)} answers")
            self._executor.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.spin_until(lambda: time.monotonic() > until, seconds + 1)

    def cores(self, usage: Usage, seconds: float) -> float:
        """Processor time per second while this node goes on."""
        begun, start = usage.seconds(), time.monotonic()
        self.spin_for(seconds)
        return (usage.seconds() - begun) / (time.monotonic() - start)

    def run(self, usage: Usage, seconds: float, rate: float, width: int) -> dict:
        """Figures of `seconds` from the first answer on."""
        self.recorder.begin()
        with running(CAMERA, loop="true", width=width, rate=rate):
            self.spin_until(lambda: self.recorder.sources, START_SECONDS)
            settled = min(SETTLED_SECONDS, seconds / 3)
            begun, start = usage.seconds(), time.monotonic()
            self.spin_for(settled)
            memory = usage.megabytes()
            self.spin_for(seconds - settled)
            cores = (usage.seconds() - begun) / (time.monotonic() - start)
            growth = usage.megabytes() - memory
        self.spin_for(QUIET_SECONDS)
        return {"seconds": seconds, "image_width": width, "image_rate_hz": rate, **figures(self.recorder, rate),
                "cores": round(cores, 3), "memory_growth_mb": round(growth, 2)}


CAMERA = [str(Path(__file__).resolve()), "camera"]


def measure(seconds: float, rates: list[float], width: int) -> dict:
    """Figures of one node: a run for each rate, and what surrounds them."""
    bench, start = Bench(), time.monotonic()
    with running(["-m", "avssl_ros.ros.localizer_node"], audio_source="topic") as process:
        bench.spin_until(lambda: bench.node.count_publishers("localizer/sources"), START_SECONDS)
        result, usage = {"start_s": round(time.monotonic() - start, 2)}, Usage(process.pid)
        bench.spin_for(1.0)  # the end of its start is not idleness
        result["cores_without_images"] = round(bench.cores(usage, min(IDLE_SECONDS, seconds)), 4)
        result["runs"] = [bench.run(usage, seconds, rate, width) for rate in rates]
        bench.recorder.leave()
        with running(CAMERA, loop="true", width=width, rate=rates[0]):
            bench.recorder.begin()
            bench.spin_until(lambda: bench.recorder.counted("answered") > rates[0], START_SECONDS)
            result["cores_without_subscribers"] = round(bench.cores(usage, min(IDLE_SECONDS, seconds)), 4)
    bench.node.destroy_node()
    return result


def endings(recorder: Recorder) -> set[tuple[int, int]]:
    """Stamps of the empty answers that say that images stopped: no image's, and over 1 s after the answer before.

    In the order in which they came: an image that waited meanwhile, for a busy machine, is answered after the end and
    may have an earlier stamp.
    """
    answers = list(recorder.sources)
    return {
        stamp
        for before, stamp in zip(answers, answers[1:], strict=False)
        if stamp in recorder.empty and stamp not in recorder.images and seconds_of(stamp) - seconds_of(before) > 1.0
    }


def seconds_of(stamp: tuple[int, int]) -> float:
    return stamp[0] + stamp[1] * 1e-9


def is_of_the_camera(stamp: tuple[int, int], first: tuple[int, int], rate: float) -> bool:
    """Whether a stamp lies whole periods after the camera's first one.

    This program loses images as well where it has to wait for its turn, and the node may have answered those.
    """
    periods = (stamp[0] - first[0] + (stamp[1] - first[1]) * 1e-9) * rate
    return periods > 0 and abs(periods - round(periods)) < 1e-3


def figures(recorder: Recorder, rate: float) -> dict:
    """Of one run, by what arrived and by what the node itself counted."""
    stamps = set(recorder.images)
    answers = set(recorder.sources) - endings(recorder)
    latency = [recorder.sources[stamp] - seconds_of(stamp) for stamp in answers]
    p50, p95, p99 = (round(float(p), 4) for p in np.percentile(latency, [50, 95, 99]))
    # The node keeps only the newest image: one that a newer one replaced while it was busy was not accepted.
    accepted = recorder.counted("received") - recorder.counted("dropped")
    # DDS may connect the node to the camera before it connects this program: what came then cannot be compared.
    before = {stamp for stamp in answers if stamp < min(stamps)}
    foreign = [stamp for stamp in answers - stamps - before if not is_of_the_camera(stamp, min(stamps), rate)]
    return {
        "images_published": len(stamps),
        "images_received": recorder.counted("received"),
        "images_accepted": accepted,
        "answers": len(answers),
        "answered_of_accepted": round(len(answers) / max(1, accepted), 4),
        "answered_of_published": round(len(answers & stamps) / len(stamps), 4),
        "answers_before_the_first_image_seen_here": len(before),
        "answers_with_a_foreign_stamp": len(foreign),
        "maps": len(recorder.maps),
        "marker_messages": recorder.marker_messages,
        "sources_published": recorder.sources_seen,
        "dropped": recorder.counted("dropped"),
        "bad_images": recorder.counted("bad images"),
        "bad_sound": recorder.counted("bad sound"),
        "latency_p50_s": p50,
        "latency_p95_s": p95,
        "latency_p99_s": p99,
    }


def print_report(result: dict) -> None:
    print(f"{result['runs'][0]['image_width']} pixels, {result['runs'][0]['seconds']:g} s a row; start "
          f"{result['start_s']} s; cores without images {result['cores_without_images']:.3f}, without subscribers "
          f"{result['cores_without_subscribers']:.3f}")
    print("   Hz  published  answered  dropped  foreign     p50     p95     p99  cores  memory")
    for run in result["runs"]:
        p50, p95, p99 = (run[f"latency_p{p}_s"] * 1e3 for p in (50, 95, 99))
        print(f"{run['image_rate_hz']:5g}  {run['images_published']:9d}  {run['answers']:8d}  {run['dropped']:7d}  "
              f"{run['answers_with_a_foreign_stamp']:7d}  {p50:6.0f}  {p95:6.0f}  {p99:6.0f}  {run['cores']:5.2f}  "
              f"{run['memory_growth_mb']:+6.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long images are published (default 60)")
    parser.add_argument("--rates", type=float, nargs="+", default=[10.0], help="images per second (default 10)")
    parser.add_argument("--width", type=int, default=1920, help="width of the images in pixels (default 1920)")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    arguments = parser.parse_args()
    import rclpy

    from avssl_ros.ros.domain import use_own_domain

    use_own_domain()

    rclpy.init()
    result = measure(arguments.seconds, arguments.rates, arguments.width)
    rclpy.shutdown()
    print_report(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["camera"]:
        sys.exit(be_camera(sys.argv[2:]))
    main()
