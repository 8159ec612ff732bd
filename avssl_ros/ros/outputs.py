"""What the localizer node publishes, and in which order. What costs something is made only while someone subscribes."""

from __future__ import annotations

import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String
from visualization_msgs.msg import MarkerArray

from avssl_ros.ros import converters
from avssl_ros.ros.source_frames import SourceFrames
from avssl_ros.scene import Event, Localization

DEPTH = 5
EVENT_DEPTH = 100  # events are rare and none may be lost; everything else is replaced by the next frame


class Outputs:
    """The publishers of one localizer node, with TF frames if `frames` is given; used by one thread at a time."""

    def __init__(self, node: Node, frames: SourceFrames | None = None):
        self._frames = frames
        self._sources = node.create_publisher(PointCloud2, "~/sources", DEPTH)
        self._scene = node.create_publisher(String, "~/scene", DEPTH)
        self._direction = node.create_publisher(PoseStamped, "~/direction", DEPTH)
        self._events = node.create_publisher(String, "~/events", EVENT_DEPTH)
        self._markers = node.create_publisher(MarkerArray, "~/markers", DEPTH)
        self._map = node.create_publisher(Image, "~/map", DEPTH)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", DEPTH)
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

    def publish_events(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self._events.publish(converters.event_to_string(event))

    def flush(self, seconds: float) -> None:
        """Wait until subscribers have what was published, at most `seconds`: a message dies with its publisher."""
        until = time.monotonic() + seconds
        for publisher in (self._sources, self._events, self._markers, self._scene):
            publisher.wait_for_all_acked(Duration(seconds=max(0.0, until - time.monotonic())))

    def publish_diagnostics(self, message: DiagnosticArray) -> None:
        self._diagnostics.publish(message)

    def _publish_markers(self, scene: Localization, header: Header) -> None:
        if not self._markers.get_subscription_count():
            return
        message = converters.scene_to_markers(scene, header, self._shown)
        self._shown = {source.id for source in scene.sources}
        if message.markers:
            self._markers.publish(message)
