"""What every node's process shares: start with clear errors, spin, end cleanly on SIGINT and SIGTERM.

rclpy's own signal handlers close DDS at once, and nothing could be published any more. Ours only ask the loop to end,
so that a node can still say that its sources are gone. The single-threaded executor is used on purpose: in rclpy 9.1
the events executor receives nothing and the multi-threaded one has open faults (rclpy#1223, #1452).
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

SPIN_SECONDS = 0.1  # Python sees a signal only between two waits, so this is how late it may be noticed
START_ERRORS = (OSError, RuntimeError, ValueError, ParameterException)


class Process(Node):
    """A node that may end by itself (`finished`) and has something to do at the end (`close`)."""

    finished = False

    def close(self) -> None:
        """Called once before the node is destroyed, while it can still publish."""


def run(make_node: Callable[[], Process], args: list[str] | None = None) -> int:
    """Spin the node until it finishes or a signal comes; returns the exit status: 0, or 1 where it could not start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make_node()
    except START_ERRORS as error:
        print(f"cannot start: {_explain(error)}", file=sys.stderr)
        rclpy.shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not stop.is_set() and not node.finished:
        executor.spin_once(timeout_sec=SPIN_SECONDS)
    node.close()
    executor.remove_node(node)
    node.destroy_node()
    rclpy.shutdown()
    return 0


def _explain(error: Exception) -> str:
    hint = ""
    if isinstance(error, InvalidParameterTypeException):
        hint = " (a double needs a decimal point: 10.0)"
    elif isinstance(error, InvalidParameterValueException):
        hint = " ('python -m avssl_ros.ros.parameters' lists what is allowed)"
    return f"{error}{hint}"
