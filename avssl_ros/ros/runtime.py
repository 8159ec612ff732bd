"""What every node's process shares: start with clear errors, spin, end cleanly on SIGINT and SIGTERM (stopping.py).

The single-threaded executor is used on purpose: in rclpy 9.1 the events executor receives nothing and the
multi-threaded one has open faults (rclpy#1223, #1452).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from avssl_ros.ros import stopping

SPIN_SECONDS = 0.1  # Python sees a signal only between two waits, so this is how late it may be noticed
START_ERRORS = (OSError, RuntimeError, ValueError, ParameterException)


class Process(Node):
    """A node that may end by itself (`finished`) and has something to do at the beginning and at the end."""

    finished = False

    def begin(self) -> None:
        """Called once before the node spins. Raises one of START_ERRORS where it cannot start; a signal breaks off."""

    def close(self) -> None:
        """Called once before the node is destroyed, while it can still publish; also after `begin` was broken off."""


def run(make_node: Callable[[], Process], args: list[str] | None = None) -> int:
    """Spin the node until it finishes or a signal comes; returns the exit status: 0, or 1 where it could not start.

    After a signal the process ends here, with status 0.
    """
    stopping.listen()
    stopping.hold()  # what DDS puts into shared memory must be taken away again
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    status = _run(make_node)
    rclpy.shutdown()
    if stopping.wanted.is_set():
        gc.collect()  # frees what DDS still holds for the node, before the process ends without doing so
        stopping.leave()
    return status


def _run(make_node: Callable[[], Process]) -> int:
    node = None
    try:
        try:
            node = make_node()
            with stopping.at_once():
                node.begin()
        except SystemExit:  # a signal broke the start off
            return 0
        except START_ERRORS as error:
            if not stopping.wanted.is_set():  # else it comes of the signal
                print(f"cannot start: {explain(error)}", file=sys.stderr)
            return 1
        _spin(node)
        return 0
    finally:
        if node is not None:
            node.close()
            node.destroy_node()


def _spin(node: Process) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not stopping.wanted.is_set() and not node.finished:
        executor.spin_once(timeout_sec=SPIN_SECONDS)
    executor.remove_node(node)


def explain(error: Exception) -> str:
    """The error's text, with a hint where ROS's own gives none."""
    hint = ""
    if isinstance(error, InvalidParameterTypeException):
        hint = " (a double needs a decimal point: 10.0)"
    elif isinstance(error, InvalidParameterValueException):
        hint = " ('python -m avssl_ros.ros.parameters' lists what is allowed)"
    return f"{error}{hint}"
