"""The life of a replica, and what a request or a connection meets in each part of it.

    started ──SIGTERM──> leaving ──> draining ──> hurrying ──> closing ──> gone (exit code 0)
                         notice_s    drain_s      8 s          4 s         and 3 s for the rest: `MARGIN_S` in all

SIGINT, which is somebody's Ctrl-C, leaves the notice out, and so does a SIGTERM that comes before the replica listens.
A second signal of either kind goes to *hurrying* at once and makes it and what follows short: gone within 4 s.
*draining* and what follows last only as long as there is something to wait for.

A balancer learns of this from ``/readyz``, red from the first signal on, by asking now and then. Until it has asked it
sends work here, and one that prefers idle replicas sends everything here. So *leaving* serves as before. And no
connection is closed before its balancer has had time to see it: one that is closed while idle may be closed at the
moment at which a POST is sent on it, and whoever sent that cannot know whether it was read. An answer that says
``Connection: close`` cannot be misunderstood. Once balancers send nothing any more, idle connections are closed: their
clients then connect anew, elsewhere, instead of being sent there by a 503.

    /livez, /readyz       200 and 503 until the listener closes
    any answer            says ``Connection: close`` if it begins after the signal
    a new turn, an append leaving: taken. Then 503 ``draining``
    a turn that waits     for another of its session: leaving: waits. At the beginning of draining: 503 ``draining``
    a running turn        whether its caller is there or has gone: runs until hurrying. Then it ends: streamed and with
                          something shown, as incomplete; else aborted. Either frees its lease, so that the next turn
                          begins at once elsewhere. If the store gives no verdict in time, the caller is told so
    a checkpoint          that is being made is finished until hurrying; what is left then leaves a claim that runs out
    a follower of a turn  follows. From draining on its stream ends at the first silence, in ``draining``, and can be
                          resumed at another replica
    a body that comes     leaving: read. From draining on 503 ``draining``, and the rest is dropped for a moment
    anything else         is answered; what takes longer than draining and hurrying is cut short in closing
    an idle connection    stays in leaving. With draining it is closed, and every other one after its answer
    one that is read      stays until the end of closing, whatever has not been taken by then
    slowly

What has no verdict when the process is gone is what a killed replica leaves: the lease runs out, and the next begin
declares the turn dead. The connections to the store are closed after the last verdict, and an embedded store is stopped
after them.
"""

import asyncio
from collections.abc import Callable
from typing import Final

SETTLE_S, SETTLE_HURRIED_S = 8.0, 2.0  # for verdicts; a store that answers needs milliseconds
CLOSE_S, CLOSE_HURRIED_S = 4.0, 1.0  # for connections to take their last bytes
REST_S = 0.5  # for what was cut off to notice, and twice that for the connections to the store and to Claude
MARGIN_S: Final = 15
"""How long a replica may live, seconds, beyond its notice and its drain."""

_LOOK_S: Final = 0.02


class Life:
    """How far one replica is on its way out.

    Attributes:
        leaving: it was told to end: readiness is red, and answers close their connections.
    """

    def __init__(self) -> None:
        self.leaving = False
        self._hurried_at: float | None = None

    def told_to_end(self) -> None:
        """A signal came."""
        if self.leaving:
            self._hurried_at = asyncio.get_running_loop().time()
        self.leaving = True

    async def wait(self, wait_s: float, over: Callable[[], bool] = lambda: False, *, hurried_s: float = 0.0) -> None:
        """Waits until it is over; for ``wait_s`` at most, and no longer than ``hurried_s`` once it was told twice."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not over():
            left_s = began + wait_s - loop.time()
            if self._hurried_at is not None:
                left_s = min(left_s, max(began, self._hurried_at) + hurried_s - loop.time())
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, _LOOK_S))
