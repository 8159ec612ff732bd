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
import time
from collections import OrderedDict

from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from avssl_ros.overlay import draw
from avssl_ros.ros import converters, parameters
from avssl_ros.ros.camera import Camera
from avssl_ros.ros.runtime import Process, run

LOOK_SECONDS = 0.5  # how often it is looked whether someone watches
KEPT_SECONDS = 2.0  # how long a picture waits for its results
KEPT_BYTES = 256 << 20  # of pictures, the newest of which is always kept
WARN_SECONDS = 5.0
PARTS = {"scene": String, "sources": PointCloud2, "map": Image}


class Partners:
    """Messages that wait for the others of their stamp."""

    def __init__(self):
        # stamp -> when the first of them came (monotonic), and the parts that are there
        self._waiting: OrderedDict[tuple[int, int], tuple[float, dict]] = OrderedDict()

    def add(self, stamp: tuple[int, int], name: str, message) -> dict | None:
        """The image and all PARTS of a stamp, by name, once the last of them came; what is older is dropped then."""
        _, parts = self._waiting.setdefault(stamp, (time.monotonic(), {}))
        parts[name] = message
        if len(parts) <= len(PARTS):
            self._drop_old()
            return None
        while self._waiting and self._waiting.popitem(last=False)[0] != stamp:
            pass
        return parts

    def _drop_old(self) -> None:
        size = sum(map(_size, self._waiting.values()))
        while len(self._waiting) > 1:
            stamp, first = next(iter(self._waiting.items()))
            if time.monotonic() - first[0] < KEPT_SECONDS and size <= KEPT_BYTES:
                return
            size -= _size(first)
            del self._waiting[stamp]


def _size(waiting: tuple[float, dict]) -> int:
    return len(waiting[1]["image"].data) if "image" in waiting[1] else 0


class Overlay(Process):
    """See the top of this file."""

    def __init__(self):
        super().__init__("overlay")
        parameters.declare(self, parameters.OVERLAY)
        self._pictures = self.create_publisher(CompressedImage, "localizer/overlay/compressed", 2)
        self._camera: Camera | None = None
        self._inputs: list = []
        self._partners = Partners()
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
        self._partners = Partners()

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
        parts = self._partners.add((stamp.sec, stamp.nanosec), name, message)
        if parts is not None:
            self._draw(parts)

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
