"""An event loop with a clock of its own, for tests of how long something waits: exact, and over at once.

Time stands still while anything can go on, and leaps to the next timer when nothing can. So a slow machine changes
nothing, and a wait of an hour costs nothing. Only for what lives in one loop: no sockets, threads or processes.
The marker ``leaping`` runs a test on it.
"""

import asyncio
import selectors


class _LeapingSelector(selectors.DefaultSelector):
    """Does not wait for as long as it is asked to, but counts that time as gone."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everything waits for something that will never happen")
            self.now_s += max(timeout, 0.0)
        return ready


class LeapingLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._leaping = _LeapingSelector()
        super().__init__(self._leaping)

    def time(self) -> float:
        """Seconds since it was made."""
        return self._leaping.now_s
