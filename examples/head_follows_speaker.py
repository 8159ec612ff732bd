"""Turns a robot's head to whoever speaks, and back ahead when nobody does.

    python examples/head_follows_speaker.py --ros-args -p joint:=neck_yaw \
        -r head/joint_trajectory:=/head_controller/joint_trajectory

For a camera that stays where it is when the head turns; on a head that carries the camera, add the angle it has.
"""

from __future__ import annotations

import json
import math
import time

import rclpy
from builtin_interfaces.msg import Duration
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

ALIVE_SECONDS = 2.0  # without a scene, after which the localizer has ended or stands still: it sent no offsets then


class HeadFollowsSpeaker(Node):
    def __init__(self):
        super().__init__("head_follows_speaker")
        self._joint = self.declare_parameter("joint", "head_pan_joint").value
        any_number = ParameterDescriptor(dynamic_typing=True)  # else `limit_deg:=90` were refused, as an integer
        self._limit = float(self.declare_parameter("limit_deg", 120.0, any_number).value)
        self._speakers: dict[int, float] = {}  # id -> azimuth in degrees, who began first comes first
        self._head = self.create_publisher(JointTrajectory, "head/joint_trajectory", 1)
        self.create_subscription(String, "localizer/events", self._on_event, 100)
        self._last_scene = time.monotonic()
        self.create_subscription(String, "localizer/scene", self._on_scene, 1)
        self.create_timer(0.5, self._forget_when_alone)

    def _on_event(self, message: String) -> None:
        event = json.loads(message.data)
        if event["event"] == "offset" or not event["speech"]:
            if self._speakers.pop(event["id"], None) is None:
                return  # it was no speaker
        else:
            self._speakers[event["id"]] = event["azimuth_deg"]
        self._turn(f"{event['event']} of {event['label']} #{event['id']}")

    def _on_scene(self, _: String) -> None:
        self._last_scene = time.monotonic()

    def _forget_when_alone(self) -> None:
        if self._speakers and time.monotonic() - self._last_scene > ALIVE_SECONDS:
            self._speakers.clear()
            self._turn("the localizer is silent")

    def _turn(self, why: str) -> None:
        wanted = next(iter(self._speakers.values()), 0.0)  # ahead where nobody speaks
        angle = math.radians(max(-self._limit, min(self._limit, wanted)))
        point = JointTrajectoryPoint(positions=[angle], time_from_start=Duration(nanosec=500_000_000))
        self._head.publish(JointTrajectory(joint_names=[self._joint], points=[point]))
        self.get_logger().info(f"{why}: head to {wanted:+.0f}°")


if __name__ == "__main__":
    rclpy.init()
    try:
        node = HeadFollowsSpeaker()
        while rclpy.ok():  # rclpy.spin waits without end where a signal comes between its look and its wait
            rclpy.spin_once(node, timeout_sec=0.5)
    except KeyboardInterrupt:
        pass
    except Exception:
        if rclpy.ok():  # else SIGTERM has closed DDS, perhaps in the midst of a call: that is no error
            raise
