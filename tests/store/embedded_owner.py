"""A process that owns an embedded server, to be killed by the tests.

    embedded_owner.py DIRECTORY [--watchdog]

Prints one JSON line, {"url", "pid"} or {"refused"}; then lives until its standard input ends and leaves without
stopping the server. `--watchdog` takes the way of the systems that have no PR_SET_PDEATHSIG.
"""

import json
import sys
from pathlib import Path

from storage import embedded


def main(directory: str, *options: str) -> None:
    if "--watchdog" in options:
        embedded._prctl = None
    try:
        server = embedded.EmbeddedValkey.start(Path(directory))
    except embedded.EmbeddedRefused as refused:
        print(json.dumps({"refused": str(refused)}), flush=True)
        return
    print(json.dumps({"url": server.url, "pid": server.pid}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
