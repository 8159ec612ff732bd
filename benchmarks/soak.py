"""The real node on the demo scene for long, with a random fault every so often: does it live, leak, lose an image?

    python benchmarks/soak.py --minutes 60 --json benchmarks/out/soak.json

Nodes are processes of their own in a DDS domain of their own: the scene player is camera and microphone, the localizer
runs the shipped models. Every `--every` seconds one of FAULTS is injected for real, and the node must say `localizing`
again within 3 s of the first image after it. Exit status 1 where a bar fails:

- the localizer lives to the end, and SIGTERM ends it within 2 s with status 0;
- every image it received is answered, or accounted for in its diagnostics (replaced by a newer one, bad, too late);
- no step fails for a reason of the program's own;
- its resident memory, after the warm-up, grows by less than 1 MB an hour (Theil-Sen slope). A run of less than half an
  hour cannot tell that: there it must not grow by more than 25 MB in all.
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
from collections import Counter
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from scipy.stats import theilslopes
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header, String

from avssl_ros.ros import converters
from avssl_ros.ros.domain import use_own_domain

START_SECONDS = 120.0
RECOVERY_SECONDS = 3.0
END_SECONDS = 2.0
MAX_SLOPE = 1.0  # MB per hour
SLOPE_SECONDS = 1800.0  # a shorter run has no slope worth the name
MAX_GROWTH = 25.0  # MB, in a shorter run
WARM_UP_SHARE, WARM_UP_SECONDS = 0.3, 300.0  # of the run, and at most
ACCOUNTED = ("answered", "dropped", "bad images", "too late", "left out for their sound", "failures")
IN_FLIGHT = 2  # images received that are not yet answered when diagnostics are written


class Soak:
    """The processes, what is seen of them, and the faults."""

    def __init__(self, folder: Path, seed: int):
        self.random = random.Random(seed)
        self.node = rclpy.create_node("soak")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._folder = folder
        self.figures: dict[str, str] = {}
        self.state: dict = {}
        self.last_image = 0.0  # monotonic
        self.memory: list[tuple[float, float]] = []  # seconds, MB
        self.answers = 0
        self.late: list[str] = []
        self.recoveries: list[float] = []
        self.faults: Counter[str] = Counter()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.node.create_subscription(String, "localizer/state", self._on_state, latched)
        self.node.create_subscription(CompressedImage, "image/compressed", self._on_image, newest)
        self.node.create_subscription(PointCloud2, "localizer/sources", self._on_sources, 100)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._images = self.node.create_publisher(CompressedImage, "image/compressed", 5)
        self._sound = self.node.create_publisher(PointCloud2, "audio", 100)
        self.localizer = self._start("localizer_node", audio_source="topic")
        self.player = self._start_player()

    def _start(self, module: str, **parameters) -> subprocess.Popen:
        ros = [item for name, value in parameters.items() for item in ("-p", f"{name}:={value}")]
        with (self._folder / f"{module}.log").open("ab") as log:
            command = [sys.executable, "-m", f"avssl_ros.ros.{module}", "--ros-args", *ros]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _start_player(self) -> subprocess.Popen:
        return self._start("scene_player", loop="true", subscribers=2)

    def _on_state(self, message) -> None:
        self.state = json.loads(message.data)

    def _on_image(self, message) -> None:
        if message.format == "jpeg" and message.header.frame_id == "camera":
            self.last_image = time.monotonic()

    def _on_sources(self, message) -> None:
        self.answers += 1

    def _on_diagnostics(self, message) -> None:
        for status in message.status:
            self.figures.update({value.key: value.value for value in status.values})

    def spin(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._executor.spin_once(timeout_sec=0.05)
            if not self.memory or time.monotonic() - self.memory[-1][0] > 1.0:
                self.memory.append((time.monotonic(), self._resident()))

    def spin_until(self, condition, limit: float) -> bool:
        until = time.monotonic() + limit
        while not condition() and time.monotonic() < until:
            self.spin(0.02)
        return condition()

    def _resident(self) -> float:
        """MB of the localizer; fails where it has ended."""
        if (status := self.localizer.poll()) is not None:
            raise SystemExit(f"FAILED: the localizer ended with status {status}; see {self._folder}")
        pages = int(Path(f"/proc/{self.localizer.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _call(self, service_type, name: str, request):
        client = self.node.create_client(service_type, f"/localizer/{name}")
        self.spin_until(client.service_is_ready, 10.0)
        answer = client.call_async(request)
        self.spin_until(answer.done, 20.0)
        self.node.destroy_client(client)
        return answer.result()

    def _header(self, frame: str = "camera", offset: float = 0.0) -> Header:
        return Header(stamp=converters.seconds_to_stamp(time.time() + offset), frame_id=frame)

    # ---- faults: each leaves things as they were

    def player_stands_still(self) -> None:
        self.player.send_signal(signal.SIGSTOP)
        self.spin(self.random.uniform(0.5, 4.0))
        self.player.send_signal(signal.SIGCONT)

    def player_is_killed(self) -> None:
        self.player.kill()
        self.player.wait()
        self.spin(self.random.uniform(0.0, 3.0))
        self.player = self._start_player()

    def player_ends(self) -> None:
        self.player.terminate()
        self.player.wait()
        self.spin(self.random.uniform(0.0, 3.0))
        self.player = self._start_player()

    def broken_images(self) -> None:
        for _ in range(30):
            data = self.random.randbytes(self.random.randrange(2000))
            self._images.publish(CompressedImage(header=self._header(), format="broken", data=b"\xff\xd8" + data))
            self.spin(0.02)

    def images_of_another_camera(self) -> None:
        for width in (512, 1024, 256):
            image = np.full((width // 2, width, 3), 90, np.uint8)
            for _ in range(5):
                self._images.publish(converters.rgb_to_compressed(image, self._header("other"), 80))
                self.spin(0.05)

    def flood_of_images(self) -> None:
        message = CompressedImage(header=self._header(), format="broken", data=b"no picture")
        for _ in range(2000):
            self._images.publish(message)
        self.spin(0.5)

    def sound_of_no_numbers(self) -> None:
        for _ in range(20):
            self._sound.publish(converters.sound_to_cloud(np.full(800, np.nan, np.float32), 16000, self._header()))
            self.spin(0.05)

    def sound_of_other_times_and_rates(self) -> None:
        for offset, rate in ((-1000.0, 16000), (1000.0, 48000), (0.0, 8000)):
            self._sound.publish(converters.sound_to_cloud(np.zeros(800, np.float32), rate, self._header(offset=offset)))
            self.spin(0.3)

    def other_parameters(self) -> None:
        for values in (
            {"view_azimuths_deg": [0.0, 180.0], "view_size": 128},
            {"views_per_frame": 1, "rate": 4.0},
            {"views_per_frame": 9},  # refused
            {"audio_source": "/no/such/sound.wav"},  # refused
            {"views_per_frame": 0, "rate": 15.0, "view_azimuths_deg": [0.0, 90.0, 180.0, 270.0], "view_size": 0},
        ):
            parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
            request = SetParametersAtomically.Request(parameters=parameters)
            self._call(SetParametersAtomically, "set_parameters_atomically", request)
            self.spin(0.5)

    def inactive_for_a_while(self) -> None:
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            self._call(ChangeState, "change_state", ChangeState.Request(transition=Transition(id=transition)))
            self.spin(1.0)

    def inject(self) -> None:
        """One fault, and whether the node says `localizing` soon after."""
        fault = self.random.choice(FAULTS)
        self.faults[fault.__name__] += 1
        fault(self)
        mended = time.monotonic()
        self.spin_until(lambda: self.last_image > mended, START_SECONDS)
        first = time.monotonic()
        self.spin_until(lambda: self.state["mode"] == "localizing", 5 * RECOVERY_SECONDS)
        self.recoveries.append(time.monotonic() - first)
        if self.recoveries[-1] > RECOVERY_SECONDS:
            self.late.append(f"{fault.__name__} {self.recoveries[-1]:.1f} s")

    def end(self) -> tuple[int | None, float]:
        """Status and seconds of the localizer's end at SIGTERM."""
        self.player.kill()
        self.player.wait()
        start = time.monotonic()
        self.localizer.send_signal(signal.SIGTERM)
        try:
            return self.localizer.wait(timeout=5 * END_SECONDS), time.monotonic() - start
        except subprocess.TimeoutExpired:
            self.localizer.kill()
            return None, time.monotonic() - start


FAULTS = (
    Soak.player_stands_still, Soak.player_is_killed, Soak.player_ends, Soak.broken_images,
    Soak.images_of_another_camera, Soak.flood_of_images, Soak.sound_of_no_numbers,
    Soak.sound_of_other_times_and_rates, Soak.other_parameters, Soak.inactive_for_a_while,
)  # fmt: skip


def memory_growth(memory: list[tuple[float, float]]) -> dict:
    """Resident memory after the warm-up."""
    times, resident = np.array(memory).T
    seconds = times[-1] - times[0]
    kept = times - times[0] >= min(WARM_UP_SHARE * seconds, WARM_UP_SECONDS)
    times, resident = times[kept], resident[kept]
    fifth = max(1, len(resident) // 5)
    return {
        "memory_mb": round(float(np.median(resident[-fifth:])), 1),
        "memory_growth_mb": round(float(np.median(resident[-fifth:]) - np.median(resident[:fifth])), 2),
        "memory_slope_mb_per_h": round(float(theilslopes(resident[::5], times[::5]).slope * 3600), 2),
        "memory_each_minute_mb": [round(float(resident[(times - times[0]) // 60 == minute].mean()), 1)
                                  for minute in np.unique((times - times[0]) // 60)],
    }


def failures(figures: dict) -> list[str]:
    """The bars that were not reached."""
    found = []
    if figures["seconds"] >= SLOPE_SECONDS and figures["memory_slope_mb_per_h"] >= MAX_SLOPE:
        found.append(f"memory grows by {figures['memory_slope_mb_per_h']} MB/h, allowed are {MAX_SLOPE}")
    if figures["seconds"] < SLOPE_SECONDS and figures["memory_growth_mb"] >= MAX_GROWTH:
        found.append(f"memory grew by {figures['memory_growth_mb']} MB, allowed are {MAX_GROWTH}")
    if not 0 <= figures["unaccounted"] <= IN_FLIGHT:
        found.append(f"{figures['unaccounted']} images are neither answered nor accounted for")
    if figures["failures"]:
        found.append(f"{figures['failures']} steps failed for a reason of the program's own")
    if not figures["answered"]:
        found.append("no image was answered")
    if figures["late_recoveries"]:
        found.append(f"recovery took more than {RECOVERY_SECONDS} s: {', '.join(figures['late_recoveries'])}")
    if figures["exit_status"] != 0 or figures["exit_seconds"] > END_SECONDS:
        found.append(f"SIGTERM: status {figures['exit_status']} after {figures['exit_seconds']} s")
    return found


def soak(folder: Path, seconds: float, every: float, seed: int) -> dict:
    """Figures of one run."""
    run = Soak(folder, seed)
    try:
        if not run.spin_until(lambda: run.state.get("mode") == "localizing", START_SECONDS):
            raise SystemExit(f"FAILED: nothing was localized for {START_SECONDS} s; see {folder}")
        run.memory.clear()
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            next_fault = time.monotonic() + every
            run.inject()
            run.spin(max(0.0, min(next_fault, start + seconds) - time.monotonic()))
        passed = time.monotonic() - start
        run.player.send_signal(signal.SIGSTOP)  # no more images, so that the counters settle
        run.spin(3.5)
        counted = {name: int(run.figures[name]) for name in ("received", *ACCOUNTED)}
        memory = memory_growth(run.memory)
        status, ending = run.end()
    finally:
        for process in (run.player, run.localizer):
            if process.poll() is None:
                process.kill()
    return {
        "seconds": round(passed, 1),
        "faults": dict(run.faults),
        "slowest_recovery_s": round(max(run.recoveries), 2),
        "late_recoveries": run.late,
        **{name.replace(" ", "_"): number for name, number in counted.items()},
        "unaccounted": counted["received"] - sum(counted[name] for name in ACCOUNTED),
        "answers_seen": run.answers,
        **memory,
        "exit_status": status,
        "exit_seconds": round(ending, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long it runs (default 60)")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faults")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--logs", type=Path, default=Path("benchmarks/out/soak"), help="folder of the nodes' logs")
    arguments = parser.parse_args()
    use_own_domain()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    rclpy.init()
    figures = soak(arguments.logs, 60 * arguments.minutes, arguments.every, arguments.seed)
    rclpy.shutdown()
    for name, value in figures.items():
        print(f"{name:26} {value}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    for failure in (found := failures(figures)):
        print(f"FAILED: {failure}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
