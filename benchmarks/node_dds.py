"""The real node over DDS: the share of images it answers, with which stamp, and how long that takes.

    python benchmarks/node_dds.py --seconds 60 --json benchmarks/out/node_dds.json

A scene player publishes the demo scene as 1920x960 JPEG images at 10 Hz with its sound; the node `localizer` with the
shipped models answers; this program subscribes to what a user's program would, map and markers included. All three are
processes of their own, on this machine, in a DDS domain of their own. Latency is from the image's stamp to the arrival
of its `~/sources` here, so it includes the encoding of the image and both ways through DDS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

START_SECONDS = 120.0
QUIET_SECONDS = 1.5  # after the last image: what is still unanswered then will not be answered


class Recorder:
    """What arrives, by stamp, with the time of arrival; plus the node's own counters."""

    def __init__(self, node):
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import CompressedImage, Image, PointCloud2
        from visualization_msgs.msg import MarkerArray

        from avssl_ros.ros.converters import image_to_map

        self._image_to_map = image_to_map
        self.images, self.sources, self.maps = {}, {}, {}
        self.empty: set[tuple[int, int]] = set()  # stamps of answers without a source
        self.marker_messages = 0
        self.sources_seen = 0
        self.counters: dict[str, int] = {}
        self._clock = node.get_clock()
        node.create_subscription(CompressedImage, "image/compressed", lambda m: self._note(self.images, m), 100)
        node.create_subscription(PointCloud2, "localizer/sources", self._on_sources, 100)
        node.create_subscription(Image, "localizer/map", self._on_map, 100)
        node.create_subscription(MarkerArray, "localizer/markers", self._on_markers, 100)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

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
        self.counters = {
            key: int(values[key]) for key in ("received", "answered", "dropped", "bad images", "bad sound")
        }


@contextmanager
def running(module: str, **parameters):
    """A node of this package as a process, ended by SIGTERM; fails where its exit status is not 0."""
    ros = [item for name, value in parameters.items() for item in ("-p", f"{name}:={value}")]
    process = subprocess.Popen([sys.executable, "-m", f"avssl_ros.ros.{module}", "--ros-args", *ros])
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        if status := process.wait(timeout=15):
            raise SystemExit(f"{module} ended with status {status}")
    finally:
        if process.poll() is None:
            process.kill()


def measure(seconds: float, rate: float, width: int) -> dict:
    """Figures of one run of `seconds` from the first answer on."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    node = rclpy.create_node("node_dds")
    recorder = Recorder(node)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin_until(condition, limit: float) -> None:
        until = time.monotonic() + limit
        while not condition():
            if time.monotonic() > until:
                raise SystemExit(
                    f"gave up after {limit} s: {len(recorder.images)} images, {len(recorder.sources)} answers"
                )
            executor.spin_once(timeout_sec=0.05)

    with running("localizer_node", audio_source="topic"):
        spin_until(lambda: node.count_publishers("localizer/sources"), START_SECONDS)
        with running("scene_player", loop="true", width=width, rate=rate):
            spin_until(lambda: recorder.sources, START_SECONDS)
            start = time.monotonic()
            spin_until(lambda: time.monotonic() - start > seconds, seconds + 1)
        end = time.monotonic()
        spin_until(lambda: time.monotonic() - end > QUIET_SECONDS, QUIET_SECONDS + 1)
    node.destroy_node()
    return figures(recorder, seconds, rate, width)


def endings(recorder: Recorder) -> set[tuple[int, int]]:
    """Stamps of the empty answers that say that images stopped: no image's, and over 1 s after the answer before."""
    answers = sorted(recorder.sources)
    return {
        stamp
        for before, stamp in zip(answers, answers[1:], strict=False)
        if stamp in recorder.empty and stamp not in recorder.images and seconds_of(stamp) - seconds_of(before) > 1.0
    }


def seconds_of(stamp: tuple[int, int]) -> float:
    return stamp[0] + stamp[1] * 1e-9


def figures(recorder: Recorder, seconds: float, rate: float, width: int) -> dict:
    stamps = set(recorder.images)
    answers = set(recorder.sources) - endings(recorder)
    latency = [recorder.sources[stamp] - seconds_of(stamp) for stamp in answers]
    p50, p95 = np.percentile(latency, [50, 95])
    # The node keeps only the newest image: one that a newer one replaced while it was busy was not accepted.
    accepted = recorder.counters["received"] - recorder.counters["dropped"]
    # DDS may connect the node to the player before it connects this program: what came then cannot be compared.
    before = {stamp for stamp in answers if stamp < min(stamps)}
    return {
        "seconds": seconds,
        "image_width": width,
        "image_rate_hz": rate,
        "images_published": len(stamps),
        "images_received": recorder.counters["received"],
        "images_accepted": accepted,
        "answers": len(answers),
        "answered_of_accepted": round(len(answers) / max(1, accepted), 4),
        "answered_of_published": round(len(answers & stamps) / len(stamps), 4),
        "answers_before_the_first_image_seen_here": len(before),
        "answers_with_a_foreign_stamp": len(answers - stamps - before),
        "maps": len(recorder.maps),
        "marker_messages": recorder.marker_messages,
        "sources_published": recorder.sources_seen,
        "dropped": recorder.counters["dropped"],
        "bad_images": recorder.counters["bad images"],
        "bad_sound": recorder.counters["bad sound"],
        "latency_p50_s": round(float(p50), 4),
        "latency_p95_s": round(float(p95), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long images are published (default 60)")
    parser.add_argument("--rate", type=float, default=10.0, help="images per second (default 10, the demo scene's own)")
    parser.add_argument("--width", type=int, default=1920, help="width of the images in pixels (default 1920)")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    arguments = parser.parse_args()
    os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 101))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    import rclpy

    rclpy.init()
    result = measure(arguments.seconds, arguments.rate, arguments.width)
    rclpy.shutdown()
    for name, value in result.items():
        print(f"{name:30} {value}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
