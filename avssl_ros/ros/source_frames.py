"""One TF frame per source, where tf2_msgs is installed (parameter `broadcast_tf`)."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from avssl_ros.ros import converters
from avssl_ros.scene import Localization

DEPTH = 100  # what tf2_ros takes: everything of a robot is on this one topic
WARN_SECONDS = 10.0


class SourceFrames:
    """Publishes `source_<id>` on `/tf`, `<namespace>/source_<id>` for a node in one, a child of the results' frame.

    TF forgets nothing: after an offset the frame is no longer sent, and its last direction stays. docs/events.md says
    how to look it up.

    Raises ValueError where tf2_msgs is not installed.
    """

    def __init__(self, node: Node):
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError as error:
            raise ValueError(
                f"broadcast_tf needs the ROS package tf2_msgs, which is not here ({error}); install it "
                "(apt install ros-<distribution>-tf2-msgs) or set broadcast_tf:=false"
            ) from error
        self._message_type = TFMessage
        self._node = node
        self._publisher = node.create_publisher(TFMessage, "/tf", QoSProfile(depth=DEPTH))

    def publish(self, scene: Localization, header: Header) -> None:
        if not scene.sources:
            return
        if not header.frame_id:
            self._node.get_logger().warning(
                "no TF frames are sent: the images name no frame; set frame_id", throttle_duration_sec=WARN_SECONDS
            )
            return
        transforms = converters.scene_to_transforms(scene, header, self._node.get_namespace())
        self._publisher.publish(self._message_type(transforms=transforms))

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)
