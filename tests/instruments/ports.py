"""Ports of 127.0.0.1 that stay ours while nobody listens on them.

A port that was free a moment ago, or that a server has just left, may be another's before ours listens there: every
client connection of every process takes one too, and a minute's worth of them are lingering. Tests that run side by
side, or beside anything else, meet that sooner or later.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK = "127.0.0.1"


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that the system gives to nobody else meanwhile; a server of ours may listen on it, end and listen again.

    On Linux a socket that is bound and does not listen does it: connections are refused, and a server that sets
    SO_REUSEADDR, as all of ours do, can listen there none the less. Elsewhere that server would be refused too, so
    the port is only one that was free.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((LOOPBACK, 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield port
