"""A camera in a process of its own, to be stopped, continued and killed: a bright spot on a dark panorama at 10 Hz."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

sys.path.insert(0, str(Path(__file__).parents[1] / "ros"))

from ros_graph import jpeg_with_spot  # noqa: E402

rclpy.init()
node = rclpy.create_node("camera")
publisher = node.create_publisher(CompressedImage, "image/compressed", QoSProfile(depth=5))
jpeg = jpeg_with_spot((512, 256), 90.0)
while rclpy.ok():
    header = Header(stamp=node.get_clock().now().to_msg(), frame_id="camera")
    publisher.publish(CompressedImage(header=header, format="jpeg", data=jpeg))
    print(time.monotonic(), flush=True)
    time.sleep(0.1)
