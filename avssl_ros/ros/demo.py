"""`avssl demo`: the real node on a scene whose sources are known, watched as a user's program would watch it.

Starts `localizer` and `scene_player` as processes in a DDS domain of their own on this machine, subscribes to what they
publish, prints a line for each source as it appears, and compares with what is known of the scene. Exit status 0 only
if every sounding object was found within 15 degrees while it sounded and nothing silent was reported.

Writes into the output folder overlay.mp4, sources.jsonl and timeline.png (as `avssl localize` does), map.png (every
source at its surest moment in one picture), and the logs of both nodes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from avssl_ros.geometry import angle_between
from avssl_ros.overlay import draw
from avssl_ros.paths import demo_scene
from avssl_ros.recording import Recording
from avssl_ros.ros import converters
from avssl_ros.ros.domain import use_own_domain
from avssl_ros.scene import Localization

TOLERANCE_DEG = 15.0
LATE_SECONDS = 1.5  # a source ends only after its minimum silence, and the sound window still holds its last moment
START_SECONDS = 60.0  # for the localizer to load its models on a busy machine
DISCOVERY_SECONDS = 1.5  # from the images' subscribers, for which the player waits, to those of the sound
UNSEEN_SECONDS = 0.6  # a source that has just begun is heard some frames before it is found in view
EXTRA_SECONDS = 30.0  # beyond the scene's own length
MARKS = {True: "ok", False: "WRONG", None: "note"}
QUEUE = 200  # the demo wants every message of the scene for its files, not only the newest


class Processes:
    """The two nodes, each with a log file in `folder`; ended on leaving the `with` block, whatever happened."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._started: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_) -> None:
        for process in self._started.values():
            process.terminate()
        for process in self._started.values():
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()

    def start(self, module: str, **parameters) -> None:
        arguments = [item for name, value in parameters.items() for item in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", f"avssl_ros.ros.{module}", "--ros-args", *arguments]
        with self._log(module).open("wb") as log:
            self._started[module] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def ended(self, module: str) -> bool:
        """Whether it ended by itself. Raises RuntimeError, with what it said, where that was an error."""
        status = self._started[module].poll()
        if status:
            said = self._log(module).read_text(errors="replace").strip()[-2000:]
            raise RuntimeError(f"{module} ended with status {status}:\n{said}")
        return status is not None

    def _log(self, module: str) -> Path:
        return self._folder / f"{module}.log"


class Watcher(Node):
    """A user's program: keeps what camera, microphone and localizer publish and prints sources as they appear."""

    def __init__(self):
        super().__init__("demo")
        self.images: list[CompressedImage] = []
        self.sound: list[PointCloud2] = []
        self._scenes: list[String] = []
        self._sources: dict[float, PointCloud2] = {}
        self._maps: dict[float, Image] = {}
        self._unseen: dict[str, float] = {}  # since when each label is heard without being in view
        self._named: set[str] = set()  # those that were printed
        self.create_subscription(CompressedImage, "image/compressed", self.images.append, QUEUE)
        self.create_subscription(PointCloud2, "audio", self.sound.append, QUEUE)
        self.create_subscription(String, "localizer/scene", self._on_scene, QUEUE)
        self.create_subscription(PointCloud2, "localizer/sources", lambda m: _keep(self._sources, m), QUEUE)
        self.create_subscription(Image, "localizer/map", lambda m: _keep(self._maps, m), QUEUE)
        self.create_subscription(String, "localizer/events", self._on_event, QUEUE)

    @property
    def start(self) -> float:
        """Capture time of the scene's first moment, seconds: of its first image or sound, whichever came through."""
        first = [min(map(_seconds, messages)) for messages in (self.images, self.sound) if messages]
        return min(first, default=0.0)

    def localizer_is_ready(self) -> bool:
        return "localizer" in {end.node_name for end in self.get_subscriptions_info_by_topic("image/compressed")}

    def results(self) -> list[Localization]:
        """What the localizer said, in order, with times from the scene's start; only complete sets of messages."""
        scenes = []
        for text in self._scenes:
            stamp = converters.stamp_to_seconds(converters.string_stamp(text))
            if stamp in self._sources and stamp in self._maps:
                scene = converters.scene_from_messages(text, self._sources[stamp], self._maps[stamp])
                scenes.append(replace(scene, time=stamp - self.start))
        return sorted(scenes, key=lambda scene: scene.time)

    def _on_event(self, message: String) -> None:
        event = json.loads(message.data)
        if event["event"] == "onset":
            print(
                f"{event['time'] - self.start:6.1f} s  {'#' + str(event['id']):>4}  {event['label']:22}"
                f"{event['azimuth_deg']:+7.0f}°  {event['elevation_deg']:+8.0f}°  {event['confidence']:9.0%}",
                flush=True,
            )

    def _on_scene(self, message: String) -> None:
        self._scenes.append(message)
        line = json.loads(message.data)
        heard = {sound["label"]: sound["confidence"] for sound in line["unseen"]}
        self._unseen = {label: self._unseen.get(label, line["time"]) for label in heard}
        for label, since in self._unseen.items():
            if line["time"] - since >= UNSEEN_SECONDS and label not in self._named:
                self._named.add(label)
                print(
                    f"{since - self.start:6.1f} s     -  {label:22}  heard, not in view {heard[label]:9.0%}", flush=True
                )


def _seconds(message) -> float:
    return converters.stamp_to_seconds(message.header.stamp)


def _keep(messages: dict[float, object], message) -> None:
    messages[_seconds(message)] = message


def play(folder: Path, models: str, seconds: float) -> Watcher:
    """Run the nodes over the whole scene of `seconds` and return what was published, printing sources on the way."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    watcher, executor = Watcher(), SingleThreadedExecutor()
    executor.add_node(watcher)

    def spin_until(condition, limit: float, what: str) -> None:
        end = time.monotonic() + limit
        while not condition():
            executor.spin_once(timeout_sec=0.05)
            if time.monotonic() > end:
                raise RuntimeError(f"waited {limit:.0f} s in vain for {what}; see the logs in {folder}")

    with Processes(folder) as processes:
        processes.start("localizer_node", audio_source="topic", **({"models": models} if models else {}))
        spin_until(
            lambda: processes.ended("localizer_node") or watcher.localizer_is_ready(), START_SECONDS, "the localizer"
        )
        print(f"{'time':>8}  {'id':>4}  {'source':22}{'azimuth':>8}  {'elevation':>9}  {'confidence':>9}")
        processes.start("scene_player", subscribers=2, start_delay=DISCOVERY_SECONDS)  # the localizer and us
        spin_until(lambda: processes.ended("scene_player"), seconds + EXTRA_SECONDS, "the scene to end")
        processes.ended("localizer_node")
        settled = time.monotonic() + LATE_SECONDS
        spin_until(lambda: time.monotonic() > settled, 2 * LATE_SECONDS, "the last results")
    executor.remove_node(watcher)
    watcher.destroy_node()
    rclpy.shutdown()
    return watcher


def write_files(folder: Path, watcher: Watcher, seconds: float) -> list[dict]:
    """overlay.mp4, sources.jsonl, timeline.png and map.png; returns the lines of sources.jsonl.

    Raises RuntimeError where less than nine tenths of the scene's `seconds` were shown, heard and answered.
    """
    scenes = watcher.results()
    streams = {"images": watcher.images, "sound": watcher.sound, "results": scenes}
    for name, stream in streams.items():
        times = [item.time + watcher.start if name == "results" else _seconds(item) for item in stream]
        if not times or max(times) - min(times) < 0.9 * seconds:
            covered = max(times) - min(times) if times else 0.0
            raise RuntimeError(f"{name} came through for {covered:.1f} s of {seconds:.1f} s; see the logs in {folder}")
    images = [(_seconds(message) - watcher.start, converters.message_to_rgb(message)) for message in watcher.images]
    images.sort(key=lambda item: item[0])
    sound = [(*converters.cloud_to_sound(message), _seconds(message) - watcher.start) for message in watcher.sound]
    height, width = images[0][1].shape[:2]
    fps = (len(images) - 1) / (images[-1][0] - images[0][0])
    with Recording(folder, width, height, fps, sound[0][1], title="avssl demo") as recording:
        for samples, _, captured in sorted(sound, key=lambda item: item[2]):
            recording.add_sound(samples, captured)
        for scene in scenes:
            recording.add_scene(scene)
        times = np.array([scene.time for scene in scenes])
        for captured, image in images:
            shown = scenes[max(0, int(np.searchsorted(times, captured + 1e-4)) - 1)]
            recording.add_frame(image, captured, shown)
    picture = draw(images[0][1], surest_moments(scenes))
    cv2.imwrite(str(folder / "map.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return recording.lines


def surest_moments(scenes: list[Localization]) -> Localization:
    """One Localization with every source as it was when it was surest, and the maps of those moments together."""
    best: dict[int, tuple[float, Localization]] = {}
    for scene in scenes:
        for source in scene.sources:
            if source.id not in best or source.confidence > best[source.id][0]:
                best[source.id] = (source.confidence, scene)
    sources = [s for identity, (_, scene) in best.items() for s in scene.sources if s.id == identity]
    joint = np.max([scene.map for _, scene in best.values()], axis=0) if best else scenes[0].map
    return Localization(tuple(sources), joint, (), active=bool(sources))


@dataclass(frozen=True)
class Finding:
    """One sentence about one thing of the scene, and whether it is as it should be (None: for information only)."""

    text: str
    right: bool | None


def judge(truth: dict, lines: list[dict]) -> list[Finding]:
    """Compare the lines of sources.jsonl with the truth of scene.json: a finding for everything in the scene."""
    reports = [Report.read(line["time"], source) for line in lines for source in line["sources"]]
    things = truth["sounding"] + truth["silent"]
    of_thing: dict[str, list[Report]] = {thing["name"]: [] for thing in things}
    strays = []
    for report in reports:
        nearest = min(things, key=report.degrees_off)
        near = report.degrees_off(nearest) <= max(TOLERANCE_DEG, nearest["width_deg"] / 2)
        (of_thing[nearest["name"]] if near else strays).append(report)
    findings = [_judge_sounding(thing, reports) for thing in truth["sounding"]]
    findings += [_judge_silence(thing, of_thing[thing["name"]]) for thing in things]
    findings += [_judge_unseen(thing, lines) for thing in truth["unseen"]]
    if strays:
        first = strays[0]
        where = f"{first.label} at {np.degrees(first.azimuth):+.0f}°, {first.time:.1f} s"
        findings.append(Finding(f"{len(strays)} frames name a source where nothing stands, first {where}", None))
    return findings


@dataclass(frozen=True)
class Report:
    """A source in one frame; radians."""

    time: float
    id: int
    label: str
    azimuth: float
    elevation: float

    @classmethod
    def read(cls, time: float, source: dict) -> Report:
        azimuth, elevation = np.radians([source["azimuth_deg"], source["elevation_deg"]])
        return cls(time, source["id"], source["label"], azimuth, elevation)

    def degrees_off(self, thing: dict) -> float:
        truth = np.radians(thing["azimuth_deg"]), np.radians(thing["elevation_deg"])
        return float(np.degrees(angle_between(self.azimuth, self.elevation, *truth)))


def _judge_sounding(thing: dict, reports: list[Report]) -> Finding:
    """Found where one source stayed near it, by the median of its frames, while it sounded."""
    what = f"{thing['name']} sounds at {thing['azimuth_deg']:+.0f}°, {thing['from']:.1f} to {thing['to']:.1f} s"
    during: dict[int, list[Report]] = defaultdict(list)
    for report in reports:
        if thing["from"] <= report.time <= thing["to"] + LATE_SECONDS:
            during[report.id].append(report)
    if not during:
        return Finding(f"{what}: not found", False)
    off, label = min((float(np.median([r.degrees_off(thing) for r in track])), track[-1].label)
                     for track in during.values())  # fmt: skip
    if off > TOLERANCE_DEG:
        return Finding(f"{what}: not found, the nearest source was {off:.0f}° away ({label})", False)
    return Finding(f"{what}: found as {label}, {off:.0f}° off", True)


def _judge_silence(thing: dict, reports: list[Report]) -> Finding:
    """Nothing may be reported at the thing while it is silent: always, or outside its time."""
    sounds, end = thing.get("from", np.inf), thing.get("to", -np.inf) + LATE_SECONDS
    wrong = [report for report in reports if not sounds <= report.time <= end]
    what = f"{thing['name']} is silent at {thing['azimuth_deg']:+.0f}°" + (" otherwise" if "from" in thing else "")
    if wrong:
        return Finding(f"{what}: reported in {len(wrong)} frames, first at {wrong[0].time:.1f} s", False)
    return Finding(f"{what}: not reported", True)


def _judge_unseen(thing: dict, lines: list[dict]) -> Finding:
    """What is heard of a thing that is not in view; for information, as a wrong source shows in the other findings."""
    heard = Counter(
        sound["label"] for line in lines for sound in line["unseen"]
        if thing["from"] <= line["time"] <= thing["to"] + LATE_SECONDS
    )  # fmt: skip
    what = f"{thing['name']} sounds out of view, {thing['from']:.1f} to {thing['to']:.1f} s"
    return Finding(f"{what}: heard as {heard.most_common(1)[0][0] if heard else 'nothing in particular'}", None)


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns its exit status: 0, or 1 where something of the scene was missed or a node failed."""
    arguments = _parse(argv)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    truth = json.loads((demo_scene() / "scene.json").read_text())
    try:
        use_own_domain()  # no other robot sees the demo, nor the demo them
        watcher = play(folder, arguments.models, truth["seconds"])
        lines = write_files(folder, watcher, truth["seconds"])
    except RuntimeError as error:
        print(f"avssl demo: {error}", file=sys.stderr)
        return 1
    print()
    findings = judge(truth, lines)
    for finding in findings:
        print(f"{MARKS[finding.right]:5}  {finding.text}")
    print(f"\n{folder}/: overlay.mp4  timeline.png  map.png  sources.jsonl", flush=True)
    wrong = [finding.text for finding in findings if finding.right is False]
    if wrong:
        print(f"avssl demo failed: {'; '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="avssl demo",
        description="Run the real ROS 2 node on a short 360 degree scene whose sources are known, print each source as "
        "it appears, and write overlay.mp4, timeline.png, map.png and sources.jsonl.",
    )
    parser.add_argument(
        "--output", metavar="DIR", default="demo/out", help="folder for the results (default: demo/out)"
    )
    parser.add_argument("--models", metavar="DIR", default="", help="model folder (default: the shipped one)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
