"""The camera subscription that the localizer and the overlay share, and why nothing may come of it."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from avssl_ros.ros.health import Health
from avssl_ros.states import ABSENT, OK, STALE, Sensor

TOPICS = {"compressed": ("image/compressed", CompressedImage), "raw": ("image", Image)}
RELIABILITIES = {"best_effort": ReliabilityPolicy.BEST_EFFORT, "reliable": ReliabilityPolicy.RELIABLE}


def optical_frame(frame_id: str) -> str:
    """What is wrong where directions are told in this frame, '' for nothing: x is to the right in an optical one."""
    if not frame_id.endswith(("optical_frame", "optical")):
        return ""
    return (f"directions have x forward (REP-103), but {frame_id} is by its name an optical frame, in which x is to "
            "the right: set frame_id to the camera's other frame, or what reads TF is off by 90 degrees")


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

    def sensor(self, health: Health, timeout: float) -> Sensor:
        """How the camera is doing; `timeout`: seconds without an image that can be read after which it is not ok."""
        age = health.seconds_without_image()
        if age is None or age > timeout:
            return Sensor(STALE if self.publishers() else ABSENT, self.why_nothing(ever=age is not None))
        if health.has_only_bad_images(timeout):
            return Sensor(STALE, f"images on {self.topic} arrive, but none can be read; the log says why")
        return Sensor(OK, optical_frame(health.image_frame))

    def why_nothing(self, ever: bool) -> str:
        """What to do where no image arrives, or none any more (`ever`: some did)."""
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        offers = {info.qos_profile.reliability.name.lower() for info in publishers}
        if ever and not (self._reliability == "reliable" and offers == {"best_effort"}):
            return f"images on {self.topic} stopped: the camera is {'silent' if publishers else 'gone'}"
        if publishers:
            return (
                f"{len(publishers)} publisher(s) on {self.topic} but no image arrives. Reliability: wanted "
                f"{self._reliability}, offered {', '.join(sorted(offers))}; try image_reliability:="
                f"{'best_effort' if self._reliability == 'reliable' else 'reliable'}. Large raw images get lost with "
                "best effort: publish compressed ones, or set FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA for both sides"
            )
        if self._node.count_publishers(self._other_topic):
            return (
                f"nobody publishes {self.topic}, but someone {self._other_topic}: "
                f"set image_transport:={self._other_transport}"
            )
        return f"nobody publishes {self.topic}: start the camera, or remap to its topic"
