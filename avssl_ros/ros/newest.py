"""A place for one item between two threads: the newest replaces what has not been taken. Never a queue."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

Item = TypeVar("Item")


def next_start(before: float, rate: float, now: float) -> float:
    """When the next item may be begun at the earliest, after one that might have been at `before` and is `now`.

    On from when it was due, not from when it was begun: items that come as often as `rate` would wait ever longer for
    their turn, until one is dropped. `rate`: per second, 0 for as many as come.
    """
    return max(before + (1.0 / rate if rate > 0 else 0.0), now)


class Newest(Generic[Item]):
    """`put` never waits; `take` waits for an item. `dropped` counts the items that were replaced before being taken."""

    def __init__(self):
        self.dropped = 0
        self._item: Item | None = None
        self._arrived = threading.Condition()

    def put(self, item: Item) -> None:
        with self._arrived:
            self.dropped += self._item is not None
            self._item = item
            self._arrived.notify()

    def take(self, timeout: float, not_before: float = 0.0) -> Item | None:
        """The newest item, or None after `timeout` seconds; not before `not_before` on the monotonic clock."""
        until = time.monotonic() + timeout
        with self._arrived:
            while True:
                now = time.monotonic()
                if self._item is not None and now >= not_before:
                    item, self._item = self._item, None
                    return item
                if now >= until:
                    return None
                self._arrived.wait(min(until, not_before if self._item is not None else until) - now)
