"""Node `localizer`: camera images and sound in; sources, direction, events, markers and map out.

    localizer --ros-args -r image/compressed:=/camera/image/compressed -p audio_source:=topic

Subscribes to `image/compressed` (or `image`, by the parameter image_transport) and, with audio_source "topic", to
`audio` (see audio_topic.py for its types). Publishes, with the stamp of the image they belong to:

- `~/sources` (sensor_msgs/PointCloud2): one point a source, for every processed image; empty when nothing sounds.
- `~/scene` (std_msgs/String): the same with labels, and sounds heard but not in view, as one JSON object.
- `~/direction` (geometry_msgs/PoseStamped): +x points at the strongest source; only while something sounds.
- `~/events` (std_msgs/String): one JSON object per onset, change and offset.
- `~/markers` (visualization_msgs/MarkerArray), `~/map` (sensor_msgs/Image, 32FC1): only while someone subscribes.
- `~/state` (std_msgs/String, latched): camera, microphone and what follows, as one JSON object (states.py).
- `/diagnostics` (diagnostic_msgs/DiagnosticArray), once per second.

Parameters: parameters.py. A managed node (rclpy.lifecycle) that, by the parameter autostart, configures and activates
itself; docs/node.md says what it holds in each state. Callbacks only keep the newest image, and one worker thread does
the rest (answers.py).
"""

from __future__ import annotations

if __name__ == "__main__":
    from avssl_ros.ros import stopping

    stopping.listen()  # here, because what is imported below takes seconds

import sys
import threading
from os.path import expanduser
from pathlib import Path

import numpy as np
import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from avssl_ros.audio_input import AudioDeviceError, AudioSource, FileAudio, Microphone
from avssl_ros.encoders import read_manifest
from avssl_ros.geometry import ViewLayout
from avssl_ros.localizer import Localizer, check_views
from avssl_ros.noise import NoiseProfile
from avssl_ros.paths import shipped_models
from avssl_ros.ros import parameters
from avssl_ros.ros.answers import Answers
from avssl_ros.ros.audio_topic import AudioTopic
from avssl_ros.ros.camera import Camera
from avssl_ros.ros.health import Health
from avssl_ros.ros.keeping import Keeping
from avssl_ros.ros.outputs import Outputs
from avssl_ros.ros.runtime import START_ERRORS, Process, explain, run
from avssl_ros.ros.source_frames import SourceFrames
from avssl_ros.ros.watch import Watch
from avssl_ros.states import States
from avssl_ros.tracking import TrackingConfig

FLUSH_SECONDS = 0.3


def views_of(values: dict) -> dict:
    """The views that the parameters ask for, as arguments of Localizer. Raises ValueError."""
    layout = ViewLayout(tuple(values["view_azimuths_deg"]), values["view_elevation_deg"], values["view_fov_deg"],
                        values["view_vertical_fov_deg"], values["view_projection"])  # fmt: skip
    views = {"layout": layout, "fov_deg": values["fov_deg"], "view_size": values["view_size"] or None}
    check_views(views["fov_deg"], views["view_size"])
    if values["views_per_frame"] > len(layout):
        raise ValueError(f"views_per_frame must be 0..{len(layout)}, got {values['views_per_frame']}")
    return views


def make_localizer(values: dict) -> Localizer:
    """The localizer that the parameters ask for. Raises FileNotFoundError or ValueError, as Localizer does."""
    localizer = Localizer(
        models=expanduser(values["models"]) or None,
        providers=None if values["providers"] == ["auto"] else values["providers"],
        threads=values["threads"] or None,
        **views_of(values),
    )
    if values["noise_profile"]:
        localizer.noise = NoiseProfile.load(expanduser(values["noise_profile"]))
    return localizer


def warm_up(localizer: Localizer, projection: str) -> None:
    """One step on noise: it loads code and computes tables, so that the first image need not wait for that."""
    noise = np.random.default_rng(0).standard_normal(localizer.sample_rate).astype(np.float32) / 10
    localizer.localize(np.zeros((640, 1280, 3), np.uint8), noise, localizer.sample_rate, projection)


class LocalizerNode(LifecycleNode, Process):
    """See the top of this file."""

    def __init__(self):
        if not hasattr(self, "add_post_set_parameters_callback"):
            raise RuntimeError("this node needs ROS 2 Iron or later: Humble's rclpy tells of no changed parameters")
        super().__init__("localizer")
        parameters.declare(self, parameters.LOCALIZER)
        self._values = parameters.values(self, parameters.LOCALIZER)
        TrackingConfig(**self._tracking(self._values))
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._failure: Exception | None = None  # of the last transition
        # Held from configuration to clean-up, and from activation to deactivation.
        self._localizer = self._outputs = self._health = self._states = self._answers = None
        self._sound = self._camera = self._watch = None
        self._checked_sound: AudioSource | None = None  # between the check of parameters and their application
        self._gives_models_up = False
        self._models = ""  # the parameter's value for those in use, which is another while they are loaded

    def begin(self) -> None:
        """Configure and activate, unless someone else is to do that."""
        if not self._values["autostart"]:
            self.get_logger().info("unconfigured: waiting to be configured and activated (autostart is false)")
            return
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                raise self._failure or RuntimeError("the node could not be configured and activated")

    def close(self) -> None:
        """End the worker and all sources, and say so; whatever state the node is in."""
        self._deactivate("the node has ended")
        self._clean_up()

    # ---- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt(self._configure, self._clean_up)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt(self._activate, self._deactivate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt(self._deactivate, self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt(self._clean_up, self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt(self.close, self.close)

    def _attempt(self, step, undo) -> TransitionCallbackReturn:
        """Where a transition fails, the node goes back to where it was and says why."""
        try:
            step()
        except Exception as error:
            is_known = isinstance(error, START_ERRORS)
            self._failure = error if is_known else RuntimeError(f"{type(error).__name__}: {error}")
            self.get_logger().error(explain(self._failure))
            undo()
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        values = self._values
        self._localizer, self._models = make_localizer(values), values["models"]
        warm_up(self._localizer, values["projection"])
        stream = self._localizer.stream(values["projection"], values["views_per_frame"], values["look_closer"],
                                        **self._tracking(values))  # fmt: skip
        frames = SourceFrames(self) if values["broadcast_tf"] else None
        self._health, self._states, self._outputs = Health(), States(), Outputs(self, frames)
        self._answers = Answers(self, self._localizer, stream, self._outputs, self._health)
        self._answers.values = values

    def _activate(self) -> None:
        values = self._values
        sound_error = ""
        try:
            self._change_sound(self._make_sound(values))
        except AudioDeviceError as error:  # the node lives on, and its state and diagnostics say why
            sound_error = str(error)
            self.get_logger().error(sound_error)
        if values["record"]:
            self._answers.keeping = Keeping(self, lambda: self._values, lambda: self._sound)
        self._camera = Camera(self, values["image_transport"], values["image_reliability"], self._on_image)
        self._watch = Watch(self, self._camera, self._answers, self._outputs, self._health, self._states)
        self._watch.sound_error = sound_error
        self._answers.start()
        self.get_logger().info(
            f"ready: images from {self._camera.topic}, sound from {values['audio_source']}, "
            f"{', '.join(self._localizer.providers)}"
        )

    def _deactivate(self, why: str = "the node is not active: activate it") -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        if self._answers is not None:
            self._answers.stop()
            if self._answers.keeping is not None:
                self._answers.keeping.close()
                self._answers.keeping = None
        if self._watch is not None:
            self._watch.close(why)
            self._watch = None
            self._outputs.flush(FLUSH_SECONDS)
        self._change_sound(None)

    def _clean_up(self) -> None:
        if self._answers is not None:
            self._answers.close()
        if self._outputs is not None:
            self._outputs.close()
        self._localizer = self._outputs = self._health = self._states = self._answers = None

    # ---- parameters

    def _tracking(self, values: dict) -> dict:
        return {name: values[name] for name in parameters.TRACKING}

    def _check_parameters(self, changed) -> SetParametersResult:
        """Refuse, all together, values that contradict each other or cannot be had."""
        wanted = {**self._values, **{parameter.name: parameter.value for parameter in changed}}
        self._checked_sound = None
        try:
            TrackingConfig(**self._tracking(wanted))
            views_of(wanted)
            if any(parameter.name == "models" for parameter in changed):
                read_manifest(Path(expanduser(wanted["models"]) or shipped_models()))
            if self._answers is not None and self._has_other_sound(wanted):
                self._checked_sound = self._make_sound(wanted)
        except (AudioDeviceError, OSError, TypeError, ValueError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changed) -> None:
        before, given = self._values, {p.name: p.value for p in changed}
        self._values = {**before, **{name: value for name, value in given.items() if name in before}}
        if self._answers is None:
            return
        self._answers.values = self._values
        if given.keys() & set(parameters.TRACKING):
            self._answers.configure(**self._tracking(self._values))
        # Also the name that it has: there may be other files in the folder by now.
        if "models" in given and not self._gives_models_up:
            threading.Thread(target=self._load_models, args=(self._values,), daemon=True).start()
        if given.keys() & set(parameters.VIEWS):
            self._localizer = self._localizer.with_views(**views_of(self._values))
            self._answers.change_localizer(self._localizer)
        if self._watch is not None and self._checked_sound is not None:
            self._watch.sound_error = ""
            self._change_sound(self._checked_sound)
        self._checked_sound = None

    def _load_models(self, values: dict) -> None:
        """Loads other models beside those in use, in a thread of its own: images are answered all the while."""
        try:
            localizer = make_localizer(values)
            warm_up(localizer, values["projection"])
        except Exception as error:  # their files are whole, as was checked, but ONNX Runtime cannot use them
            text = f"models {values['models']!r} cannot be used, {self._models!r} stay: {type(error).__name__}: {error}"
            self.get_logger().error(text)
            localizer = None
        if self.executor is not None:
            self.executor.create_task(self._take_over, localizer, values["models"])

    def _take_over(self, localizer: Localizer | None, models: str) -> None:
        """Goes on with models that were loaded, unless others have been asked for since, or none are held."""
        if self._values["models"] != models or self._answers is None:
            return
        if localizer is None:
            self._gives_models_up = True  # those that the parameter names again are in use: they are not loaded anew
            self.set_parameters([rclpy.Parameter("models", value=self._models)])
            self._gives_models_up = False
            return
        self._localizer, self._models = localizer.with_views(**views_of(self._values)), models
        self._answers.change_localizer(self._localizer)
        self.get_logger().info(f"going on with the models of {models or shipped_models()}")

    # ---- sensors

    def _has_other_sound(self, wanted: dict) -> bool:
        names = ("audio_source", "microphone") if wanted["audio_source"] == "microphone" else ("audio_source",)
        return any(wanted[name] != self._values[name] for name in names)

    def _make_sound(self, values: dict) -> AudioSource:
        """The source of sound, not started. Raises AudioDeviceError, FileNotFoundError, ValueError."""
        wanted = values["audio_source"]
        if wanted == "topic":
            return AudioTopic(self, self._health.sound_was_bad)
        if wanted == "microphone":
            return Microphone(values["microphone"] or None, clock=self._now, wait=False)
        return FileAudio(expanduser(wanted), loop=True, clock=self._now)

    def _change_sound(self, source: AudioSource | None) -> None:
        if self._sound is not None:
            self._sound.stop()
        self._sound = source
        if source is not None:
            source.start()
        if self._answers is not None:
            self._answers.sound = source

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _on_image(self, message) -> None:
        if self._camera is None:  # it came while the node was being deactivated
            return
        self._health.image_arrived()
        self._answers.put(message)


def main(args: list[str] | None = None) -> int:
    return run(LocalizerNode, args)


if __name__ == "__main__":
    sys.exit(main())
