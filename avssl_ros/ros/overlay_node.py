"""Node `overlay`: the camera's picture with map, sources and labels drawn into it.

Subscribes to the camera as the localizer does and to `localizer/scene`, `localizer/sources` and `localizer/map`;
publishes `localizer/overlay/compressed` (sensor_msgs/CompressedImage, JPEG) with the stamp of the picture. Messages of
one stamp belong together; what has no partner is dropped. While nobody subscribes to the picture, this node subscribes
to nothing, so that neither it nor the localizer works for it. Parameters: parameters.py.
"""

from __future__ import annotations

if __name__ == "__main__":
    from avssl_ros.ros import stopping

    stopping.listen()  # here, because what is imported below takes seconds

import sys
from collections import OrderedDict

from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from avssl_ros.overlay import draw
from avssl_ros.ros import converters, parameters
from avssl_ros.ros.camera import Camera
from avssl_ros.ros.runtime import Process, run

LOOK_SECONDS = 0.5  # how often it is looked whether someone watches
KEPT = 10  # pictures that wait for their results: about 1 s at 10 Hz
WARN_SECONDS = 5.0
PARTS = {"scene": String, "sources": PointCloud2, "map": Image}


class Overlay(Process):
    """See the top of this file."""

    def __init__(self):
        super().__init__("overlay")
        parameters.declare(self, parameters.OVERLAY)
        self._pictures = self.create_publisher(CompressedImage, "localizer/overlay/compressed", 2)
        self._camera: Camera | None = None
        self._inputs: list = []
        self._waiting: OrderedDict[tuple[int, int], dict] = OrderedDict()  # stamp -> the parts that are there
        self.create_timer(LOOK_SECONDS, self._look_for_watcher)

    def _look_for_watcher(self) -> None:
        watched = self._pictures.get_subscription_count() > 0
        if watched and self._camera is None:
            self._connect()
        elif not watched and self._camera is not None:
            self._disconnect()

    def _connect(self) -> None:
        values = parameters.values(self, parameters.OVERLAY)
        for name, kind in PARTS.items():
            self._inputs.append(self.create_subscription(kind, f"localizer/{name}", self._receiver(name), 2))
        self._camera = Camera(self, values["image_transport"], values["image_reliability"], self._receiver("image"))

    def _disconnect(self) -> None:
        self._camera.close()
        self._camera = None
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        self._waiting.clear()

    def _receiver(self, name: str):
        """A callback that keeps part `name` with the others of its stamp and draws once all are there."""

        def receive(message) -> None:
            try:
                self._keep(name, message)
            except (ValueError, KeyError, TypeError) as error:  # a broken picture, or results of some other program
                self.get_logger().warning(f"picture left out: {error}", throttle_duration_sec=WARN_SECONDS)

        return receive

    def _keep(self, name: str, message) -> None:
        stamp = converters.string_stamp(message) if name == "scene" else message.header.stamp
        key = (stamp.sec, stamp.nanosec)
        parts = self._waiting.setdefault(key, {})
        parts[name] = message
        if len(parts) == len(PARTS) + 1:
            while self._waiting and self._waiting.popitem(last=False)[0] != key:
                pass  # what is older is not shown any more
            self._draw(parts)
        elif len(self._waiting) > KEPT:
            self._waiting.popitem(last=False)

    def _draw(self, parts: dict) -> None:
        values = parameters.values(self, parameters.OVERLAY)
        image = converters.message_to_rgb(parts["image"])
        geometry = values["projection"], values["fov_deg"]
        scene = converters.scene_from_messages(parts["scene"], parts["sources"], parts["map"], *geometry)
        picture = draw(image, scene, *geometry)
        self._pictures.publish(converters.rgb_to_compressed(picture, parts["image"].header, values["jpeg_quality"]))


def main(args: list[str] | None = None) -> int:
    return run(Overlay, args)


if __name__ == "__main__":
    sys.exit(main())
