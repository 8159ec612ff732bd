"""One image of a camera's topic, whatever its type and reliability: for `avssl check`."""

from __future__ import annotations

import time

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

from avssl_ros.ros import converters

DISCOVERY_SECONDS = 4.0  # who publishes is known by then
TYPES = {"sensor_msgs/msg/CompressedImage": CompressedImage, "sensor_msgs/msg/Image": Image}


def take_image(topic: str, seconds: float) -> tuple[np.ndarray, str, float]:
    """The next image on `topic`: RGB uint8 (H, W, 3), its frame_id, and its stamp in seconds.

    Raises ValueError, with what to do, where none comes within `seconds` or it cannot be read.
    """
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("avssl_check")
    try:
        message = _wait(node, node.resolve_topic_name(topic), time.monotonic() + seconds)
        stamp = converters.stamp_to_seconds(message.header.stamp)
        return converters.message_to_rgb(message), message.header.frame_id, stamp
    finally:
        node.destroy_node()
        rclpy.shutdown()


def _wait(node: Node, topic: str, until: float):
    received, subscription = [], None
    discovered = time.monotonic() + DISCOVERY_SECONDS
    while not received:
        now = time.monotonic()  # before the look around, so that there is one after any pause of the machine
        publishers = node.get_publishers_info_by_topic(topic)
        if publishers and subscription is None:
            kind = publishers[0].topic_type
            if kind not in TYPES:
                raise ValueError(f"{topic} has type {kind}, wanted one of {', '.join(TYPES)}")
            reliable = all(info.qos_profile.reliability == ReliabilityPolicy.RELIABLE for info in publishers)
            wanted = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
            qos = QoSProfile(depth=1, reliability=wanted)
            subscription = node.create_subscription(TYPES[kind], topic, received.append, qos)
        rclpy.spin_once(node, timeout_sec=0.1)
        if not received and now > (until if publishers else discovered):
            raise ValueError(_why_nothing(node, topic, bool(publishers)))
    return received[0]


def _why_nothing(node: Node, topic: str, is_published: bool) -> str:
    if is_published:
        return f"{topic} is published, but no image arrives: is the camera running? Large raw images need reliable QoS"
    images = [name for name, kinds in node.get_topic_names_and_types() if set(kinds) & set(TYPES)]
    there = f"image topics there are: {', '.join(sorted(images))}" if images else "there is no image topic at all"
    return f"nobody publishes {topic}; {there}. Is ROS_DOMAIN_ID the camera's?"
