"""A DDS domain of its own for what is to be heard by nobody else: the demo, benchmarks and tests."""

from __future__ import annotations

import os
import random
import socket

DOMAINS = range(1, 102)  # above, Linux gives the ports to others
TRIES = 50
PARTICIPANTS = 16  # of a domain, whose ports are looked at; the first of them may have ended while others live on

_claim: socket.socket | None = None  # of this process, until it ends


def use_own_domain() -> None:
    """Lets this process, and those that it starts, meet each other alone: a domain in use by nobody on this machine.

    Call it before rclpy.init. Raises RuntimeError where no domain is free.
    """
    global _claim
    for _ in range(TRIES):
        domain = random.SystemRandom().choice(DOMAINS)
        if (claim := _bound(domain, 2)) is None:
            continue
        if any(_is_taken(domain, 10 + 2 * participant) for participant in range(PARTICIPANTS)):
            claim.close()
            continue
        _claim = claim
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        return
    raise RuntimeError(f"{TRIES} DDS domains that were tried are all in use on this machine: end some nodes")


def _bound(domain: int, offset: int) -> socket.socket | None:
    """A socket on one of the domain's ports, None where another has it.

    Of the offsets DDS has 0, 1 and those from 10 on (DDSI-RTPS 9.6.1.1); 2 is ours: two processes that choose at the
    same time cannot both have it, though neither of their participants is there yet.
    """
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        port.bind(("", 7400 + 250 * domain + offset))
    except OSError:
        port.close()
        return None
    return port


def _is_taken(domain: int, offset: int) -> bool:
    port = _bound(domain, offset)
    if port is None:
        return True
    port.close()
    return False
