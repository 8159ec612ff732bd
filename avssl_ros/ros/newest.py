"""A place for one item between two threads: the newest replaces what has not been taken. Never a queue."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

Item = TypeVar("Item")


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
            while (now := time.monotonic()) < until:
                if self._item is not None and now >= not_before:
                    item, self._item = self._item, None
                    return item
                self._arrived.wait(min(until, not_before if self._item is not None else until) - now)
            return None
