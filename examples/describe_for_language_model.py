"""Says in words what sounds, for a language model: "speech, left-rear, since 1.2 s".

    python examples/describe_for_language_model.py          # prints, and publishes the same on ~/text

Paste the newest text into the model's prompt. A new one comes when something begins, ends or moves to another side,
and otherwise once a second.
"""

from __future__ import annotations

import json

import rclpy
from rclpy.node import Node
from std_msgs.msg import String

SIDES = ("front", "left-front", "left", "left-rear", "rear", "right-rear", "right", "right-front")


def describe(scene: dict) -> list[tuple[str, str]]:
    """What sounds where, and since when, of a message of ~/scene."""
    lines = [
        (f"{'speech' if sound['speech'] else sound['label']}, {SIDES[round(sound['azimuth_deg'] / 45) % 8]}",
         f", since {scene['time'] - sound['onset']:.1f} s")
        for sound in scene["sources"]
    ]  # fmt: skip
    return lines + [(f"{sound['label']}, not in view", "") for sound in scene["unseen"]] or [("nothing sounds", "")]


class Describer(Node):
    def __init__(self):
        super().__init__("describer")
        self._told, self._told_at = [], 0.0
        self._text = self.create_publisher(String, "~/text", 10)
        self.create_subscription(String, "localizer/scene", self._on_scene, 10)

    def _on_scene(self, message: String) -> None:
        scene = json.loads(message.data)
        lines = describe(scene)
        what = sorted(what for what, _ in lines)
        if what != self._told or scene["time"] - self._told_at >= 1.0:
            self._told, self._told_at = what, scene["time"]
            text = "; ".join(what + since for what, since in lines)
            print(text, flush=True)
            self._text.publish(String(data=text))


if __name__ == "__main__":
    rclpy.init()
    try:
        node = Describer()
        while rclpy.ok():  # rclpy.spin waits without end where a signal comes between its look and its wait
            rclpy.spin_once(node, timeout_sec=0.5)
    except KeyboardInterrupt:
        pass
    except Exception:
        if rclpy.ok():  # else SIGTERM has closed DDS, perhaps in the midst of a call: that is no error
            raise
