"""Ctrl-C and SIGTERM for a command that writes files: they end it between two pictures, never while one is written.

    with Interrupt() as interrupt:                      # from here on both raise KeyboardInterrupt,
        with Recorder(folder) as recorder:
            for picture in interrupt.between(pictures):  # from here on only while the next picture is waited for
                recorder.add_frame(picture, time.time())

Python's own handler raises wherever the program happens to be: between an mp4's opening and its first picture it left a
file that nobody can read. The node's processes have another one (ros/stopping.py), which must not wait at all.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Interrupt:
    """Handles SIGINT and SIGTERM within a `with` block of the main thread; afterwards they are handled as before.

    The first of them is the only one that raises, so that a second does not break off the tidying up. One that is
    ignored, as Ctrl-C is in what a shell started in the background, stays so.
    """

    def __init__(self):
        self._raises, self._came = True, False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; what the caller does with one of them, and what it does afterwards, is not interrupted.

        Raises KeyboardInterrupt instead of the next item where a signal came, and at once while it waits for one.
        """
        iterator = iter(items)
        while True:
            self._raises = True
            try:
                if self._came:
                    raise KeyboardInterrupt
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._raises = False
            yield item

    def _on_signal(self, *_) -> None:
        self._came = True
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt
