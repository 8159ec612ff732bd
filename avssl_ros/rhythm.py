"""Which of the moments that come are taken, where fewer of a second are wanted than come."""

from __future__ import annotations

EARLY_SECONDS = 1e-3  # that a moment may come before it is due: the times of files and stamps are rounded


class Rhythm:
    """At most `rate` moments of a second, evenly; of those that come less often, all.

    It keeps a rhythm of its own: were the next one due a period after the last one taken, 10 Hz of a 15 Hz camera would
    become 7.5. After a gap, or where the clock was set back, it starts anew.
    """

    def __init__(self, rate: float):
        self.rate = rate  # may be changed at any time
        self._due: float | None = None

    def is_due(self, time: float) -> bool:
        """Whether the moment at `time` (seconds) is taken; it is counted as such."""
        period = 1 / self.rate
        if self._due is None or abs(time - self._due) > period:
            self._due = time
        if time < self._due - EARLY_SECONDS:
            return False
        self._due += period
        return True
