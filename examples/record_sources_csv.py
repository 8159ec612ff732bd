"""Writes a line of CSV for every source in every image: for a spreadsheet or pandas.

    python examples/record_sources_csv.py --ros-args -p file:=sources.csv
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import rclpy
from rclpy.node import Node
from std_msgs.msg import String

COLUMNS = ("time", "id", "label", "speech", "onset", "azimuth_deg", "elevation_deg", "extent_deg", "confidence")


class Recorder(Node):
    def __init__(self):
        super().__init__("source_recorder")
        path = Path(self.declare_parameter("file", "sources.csv").value).expanduser()
        self._file = path.open("w", newline="", encoding="utf-8", buffering=1)  # by line: a stop loses nothing
        self._table = csv.DictWriter(self._file, COLUMNS, extrasaction="ignore")
        self._table.writeheader()
        self.create_subscription(String, "localizer/scene", self._on_scene, 100)

    def _on_scene(self, message: String) -> None:
        scene = json.loads(message.data)
        self._table.writerows({"time": scene["time"], **source} for source in scene["sources"])


if __name__ == "__main__":
    rclpy.init()
    try:
        node = Recorder()
        while rclpy.ok():  # rclpy.spin waits without end where a signal comes between its look and its wait
            rclpy.spin_once(node, timeout_sec=0.5)
    except KeyboardInterrupt:
        pass
    except Exception:
        if rclpy.ok():  # else SIGTERM has closed DDS, perhaps in the midst of a call: that is no error
            raise
