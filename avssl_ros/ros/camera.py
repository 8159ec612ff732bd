"""The camera subscription that the localizer and the overlay share, and why nothing may come of it."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

TOPICS = {"compressed": ("image/compressed", CompressedImage), "raw": ("image", Image)}
RELIABILITIES = {"best_effort": ReliabilityPolicy.BEST_EFFORT, "reliable": ReliabilityPolicy.RELIABLE}


class Camera:
    """Subscribes with depth 1 and hands each message to `callback`; `close` ends that."""

    def __init__(
        self, node: Node, transport: str, reliability: str, callback: Callable[[CompressedImage | Image], None]
    ):
        name, message_type = TOPICS[transport]
        self._node = node
        self._reliability = reliability
        qos = QoSProfile(depth=1, reliability=RELIABILITIES[reliability])
        self._subscription = node.create_subscription(message_type, name, callback, qos)
        self.topic = self._subscription.topic_name
        other, _ = TOPICS["raw" if transport == "compressed" else "compressed"]
        self._other_transport = "raw" if transport == "compressed" else "compressed"
        self._other_topic = node.resolve_topic_name(other)

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def publishers(self) -> int:
        return self._node.count_publishers(self.topic)

    def why_nothing(self, ever: bool) -> str:
        """What to do where no image arrives, or none any more (`ever`: some did)."""
        if ever:
            state = "silent" if self.publishers() else "gone"
            return f"images on {self.topic} stopped: the camera is {state}"
        if count := self.publishers():
            offers = {info.qos_profile.reliability.name for info in self._node.get_publishers_info_by_topic(self.topic)}
            return (
                f"{count} publisher(s) on {self.topic} but no image arrives. Reliability: wanted {self._reliability}, "
                f"offered {', '.join(sorted(offers)).lower()}; try image_reliability:="
                f"{'best_effort' if self._reliability == 'reliable' else 'reliable'}. Large raw images get lost with "
                "best effort: publish compressed ones, or set FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA for both sides"
            )
        if self._node.count_publishers(self._other_topic):
            return (
                f"nobody publishes {self.topic}, but someone {self._other_topic}: "
                f"set image_transport:={self._other_transport}"
            )
        return f"nobody publishes {self.topic}: start the camera, or remap to its topic"
