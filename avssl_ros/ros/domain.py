"""A DDS domain of its own for what is to be heard by nobody else: the demo, benchmarks and tests."""

from __future__ import annotations

import os
import random
import socket

DOMAINS = range(1, 102)  # above, Linux gives the ports to others
TRIES = 50


def use_own_domain() -> None:
    """Lets this process, and those that it starts, meet each other alone: a domain in use by nobody on this machine.

    Call it before rclpy.init. Raises RuntimeError where no domain is free.
    """
    for _ in range(TRIES):
        domain = random.SystemRandom().choice(DOMAINS)
        if _is_free(domain):
            os.environ["ROS_DOMAIN_ID"] = str(domain)
            os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
            return
    raise RuntimeError(f"{TRIES} DDS domains that were tried are all in use on this machine: end some nodes")


def _is_free(domain: int) -> bool:
    """Whether nobody has the port at which a domain's first participant is discovered (DDSI-RTPS 9.6.1.1)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
        try:
            first.bind(("", 7410 + 250 * domain))
        except OSError:
            return False
    return True
