"""Where a sound comes from, what makes it, and when it starts and stops: one 360 degree camera and one microphone."""

from avssl_ros.localizer import Localizer, LocalizerStream
from avssl_ros.scene import Event, Localization, Source, Unseen
from avssl_ros.tracking import TrackingConfig

__all__ = ["Event", "Localization", "Localizer", "LocalizerStream", "Source", "TrackingConfig", "Unseen"]
