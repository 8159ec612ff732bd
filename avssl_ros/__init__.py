"""Where a sound comes from, what makes it, and when it starts and stops: one 360 degree camera and one microphone."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avssl_ros.localizer import Localizer, LocalizerStream
    from avssl_ros.scene import Event, Localization, Source, Unseen
    from avssl_ros.tracking import TrackingConfig

__all__ = ["Event", "Localization", "Localizer", "LocalizerStream", "Source", "TrackingConfig", "Unseen"]

_MODULES = {"Localizer": "localizer", "LocalizerStream": "localizer", "TrackingConfig": "tracking"}


def __getattr__(name: str):
    """What this package offers, imported when it is asked for: that takes a second, and a node must listen to signals
    before it begins with that (avssl_ros/ros/stopping.py)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'scene')}"), name)
