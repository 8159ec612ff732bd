"""The commands `localizer`, `scene_player` and `overlay`: they listen to signals before the seconds of imports."""

from __future__ import annotations

from importlib import import_module

from avssl_ros.ros import stopping


def localizer() -> int:
    return _run("localizer_node")


def scene_player() -> int:
    return _run("scene_player")


def overlay() -> int:
    return _run("overlay_node")


def _run(module: str) -> int:
    stopping.listen()
    return import_module(f"avssl_ros.ros.{module}").main()
