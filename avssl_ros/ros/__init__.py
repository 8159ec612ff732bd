"""ROS 2 side of avssl_ros: the nodes `localizer`, `scene_player` and `overlay`. Only this package imports rclpy."""

try:
    import rclpy  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"ROS 2 for Python cannot be imported ({error}). Source a ROS 2 installation "
        "(source /opt/ros/<distribution>/setup.bash) or install its wheels: pip install 'avssl_ros[ros]' "
        "(Linux x86-64, Python 3.10-3.12)"
    ) from error
