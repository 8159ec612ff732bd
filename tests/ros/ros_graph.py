"""What the ROS tests share: nodes as processes, a peer that subscribes as a user's program would, a sensor feed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header

from avssl_ros.ros import converters

LOUDNESS_NODE = [str(Path(__file__).with_name("localizer_with_loudness_model.py"))]
LOCALIZER, PLAYER, OVERLAY = (
    ["-m", f"avssl_ros.ros.{name}"] for name in ("localizer_node", "scene_player", "overlay_node")
)


class Processes:
    """Starts nodes in this test's own domain and ends them with it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._started: list[subprocess.Popen] = []

    def start(self, program: list[str], *arguments: str, **parameters) -> subprocess.Popen:
        """`python program --ros-args -p name:=value ...`; its output goes to `log_of(process)`."""
        ros = [item for name, value in parameters.items() for item in ("-p", f"{name}:={_yaml(value)}")]
        log = self._folder / f"{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *program, "--ros-args", *arguments, *ros], stdout=output, stderr=subprocess.STDOUT
            )
        process.log = log
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()


def _yaml(value) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def log_of(process: subprocess.Popen) -> str:
    return process.log.read_text(errors="replace")


def terminate(process: subprocess.Popen, number: int = signal.SIGTERM) -> tuple[int, float]:
    """Exit status and seconds it took; fails after 10 s."""
    start = time.monotonic()
    process.send_signal(number)
    return process.wait(timeout=10), time.monotonic() - start


class Peer:
    """A user's program: a node of its own, spinning in a thread."""

    _numbers = count()

    def __init__(self):
        self.node = rclpy.create_node(f"peer_{os.getpid()}_{next(self._numbers)}")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()

    def collect(self, message_type, topic: str, qos: QoSProfile | int = 100) -> list:
        """A list that fills with what arrives."""
        messages: list = []
        self.node.create_subscription(message_type, topic, messages.append, qos)
        return messages

    def call(self, service_type, name: str, request, seconds: float = 30.0):
        """The response of a service."""
        client = self.node.create_client(service_type, name)
        try:
            assert client.wait_for_service(seconds), f"nobody offers {name}"
            answer = client.call_async(request)
            wait_until(answer.done, seconds, f"the answer of {name}")
            return answer.result()
        finally:
            self.node.destroy_client(client)

    def set_parameter(self, node: str, name: str, value):
        """The node's SetParametersResult."""
        return self.set_parameters(node, **{name: value})

    def set_parameters(self, node: str, **values):
        """The node's SetParametersResult for all of them together."""
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        return self.call(SetParametersAtomically, f"/{node}/set_parameters_atomically", request).result


def wait_until(condition, seconds: float, what) -> None:
    """Return once `condition()` is true; fail after `seconds`, saying `what` (text, or what makes it) was awaited."""
    until = time.monotonic() + seconds
    while True:
        is_late = time.monotonic() >= until  # before the look, so that there is one after a pause of the machine
        if condition():
            return
        assert not is_late, f"waited {seconds} s in vain for {what() if callable(what) else what}"
        time.sleep(0.02)


class Feed:
    """A camera (one bright spot on a dark panorama, JPEG) and a microphone (noise) on the topics of the localizer."""

    BLOCK = 0.05

    def __init__(
        self,
        peer: Peer,
        rate: float = 10.0,
        size: tuple[int, int] = (512, 256),
        azimuth_deg: float = 90.0,
        sound_reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
    ):
        self._peer = peer
        sound_qos = QoSProfile(depth=100, reliability=sound_reliability)
        self.images = peer.node.create_publisher(CompressedImage, "image/compressed", QoSProfile(depth=5))
        self.sound = peer.node.create_publisher(PointCloud2, "audio", sound_qos)
        self.camera_on = self.microphone_on = True
        self.loudness = 0.2
        self.sample_rate = 16000
        self.distort = lambda samples: samples  # what a defective microphone makes of them
        self.clock_offset = 0.0  # seconds by which both clocks are wrong
        self.sound_clock_offset = 0.0  # and that of the microphone alone
        self.frame_id = "camera"
        self.stamps: list[tuple[int, int]] = []
        self.jpeg = jpeg_with_spot(size, azimuth_deg)
        self._rate = rate
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._film, self._record)]

    def __enter__(self) -> Feed:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def header(self) -> Header:
        stamp = converters.seconds_to_stamp(time.time() + self.clock_offset)
        return Header(stamp=stamp, frame_id=self.frame_id)

    def _film(self) -> None:
        while not self._stopping.wait(1 / self._rate):
            if self.camera_on:
                header = self.header()
                self.stamps.append((header.stamp.sec, header.stamp.nanosec))
                self.images.publish(CompressedImage(header=header, format="jpeg", data=self.jpeg))

    def _record(self) -> None:
        noise = np.random.default_rng(0)
        last = time.time()
        while not self._stopping.wait(self.BLOCK):
            first, last, rate = last, time.time(), self.sample_rate
            samples = self.loudness * noise.standard_normal(round((last - first) * rate)).astype(np.float32)
            if self.microphone_on:
                header = Header(stamp=converters.seconds_to_stamp(first + self.clock_offset + self.sound_clock_offset))
                self.sound.publish(converters.sound_to_cloud(self.distort(samples), rate, header))


def jpeg_with_spot(size: tuple[int, int], azimuth_deg: float) -> bytes:
    width, height = size
    image = np.full((height, width, 3), 40, np.uint8)
    cv2.circle(image, (round((0.5 - azimuth_deg / 360) * width), height // 2), height // 16, (255, 255, 255), -1)
    return cv2.imencode(".jpg", image)[1].tobytes()


def stamp_of(message) -> tuple[int, int]:
    return message.header.stamp.sec, message.header.stamp.nanosec
