"""What the localizer node publishes, and in which order. What costs something is made only while someone subscribes."""

from __future__ import annotations

import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String
from visualization_msgs.msg import MarkerArray

from avssl_ros.ros import converters
from avssl_ros.ros.source_frames import SourceFrames
from avssl_ros.scene import Event, Localization
from avssl_ros.states import State

DEPTH = 5
EVENT_DEPTH = 100  # events are rare and none may be lost; everything else is replaced by the next frame


class Outputs:
    """The publishers of one localizer node, between its configuration and `close`; with TF frames if `frames` is given.

    Used by one thread at a time, except that diagnostics and state may come from another.
    """

    def __init__(self, node: Node, frames: SourceFrames | None = None):
        self._node, self._frames = node, frames
        self._sources = node.create_publisher(PointCloud2, "~/sources", DEPTH)
        self._scene = node.create_publisher(String, "~/scene", DEPTH)
        self._direction = node.create_publisher(PoseStamped, "~/direction", DEPTH)
        self._events = node.create_publisher(String, "~/events", EVENT_DEPTH)
        self._markers = node.create_publisher(MarkerArray, "~/markers", DEPTH)
        self._map = node.create_publisher(Image, "~/map", DEPTH)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", DEPTH)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._state = node.create_publisher(String, "~/state", latched)
        self._shown: set[int] = set()  # ids that markers were sent for

    def publish(self, scene: Localization, header: Header) -> None:
        """Everything there is to say of one image, `scene.events` first."""
        self.publish_events(scene.events)
        self._sources.publish(converters.scene_to_sources(scene, header))
        self._scene.publish(converters.scene_to_string(scene, header))
        if (direction := converters.scene_to_direction(scene, header)) is not None:
            self._direction.publish(direction)
        self._publish_markers(scene, header)
        if self._frames is not None:
            self._frames.publish(scene, header)
        if self._map.get_subscription_count():
            self._map.publish(converters.map_to_image(scene.map, header))

    def publish_heard(self, scene: Localization, header: Header) -> None:
        """What is heard while there is no image: that is no result of an image, so only in words."""
        self.publish_events(scene.events)
        self._scene.publish(converters.scene_to_string(scene, header))

    def publish_events(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self._events.publish(converters.event_to_string(event))

    def flush(self, seconds: float) -> None:
        """Wait until subscribers have what was published, at most `seconds`: a message dies with its publisher."""
        until = time.monotonic() + seconds
        for publisher in (self._state, self._sources, self._events, self._markers, self._scene):
            publisher.wait_for_all_acked(Duration(seconds=max(0.0, until - time.monotonic())))

    def publish_diagnostics(self, message: DiagnosticArray) -> None:
        self._diagnostics.publish(message)

    def publish_state(self, state: State) -> None:
        self._state.publish(String(data=state.to_json()))

    def close(self) -> None:
        for publisher in (self._sources, self._scene, self._direction, self._events, self._markers, self._map,
                          self._diagnostics, self._state):  # fmt: skip
            self._node.destroy_publisher(publisher)
        if self._frames is not None:
            self._frames.close()

    def _publish_markers(self, scene: Localization, header: Header) -> None:
        if not self._markers.get_subscription_count():
            return
        message = converters.scene_to_markers(scene, header, self._shown)
        self._shown = {source.id for source in scene.sources}
        if message.markers:
            self._markers.publish(message)
