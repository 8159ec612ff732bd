"""ROS 2 side of avssl_ros: the nodes `localizer`, `scene_player` and `overlay`. Only this package imports rclpy.

Nothing is imported here: a node listens to signals before it begins with what takes long (stopping.py).
"""

from importlib.util import find_spec

if find_spec("rclpy") is None:
    raise ImportError(
        "ROS 2 for Python (rclpy) is not installed. Source a ROS 2 installation "
        "(source /opt/ros/<distribution>/setup.bash) or install its wheels: pip install 'avssl_ros[ros]' "
        "(Linux x86-64, Python 3.10-3.12)"
    )
