"""Who asks. Without keys everybody who can reach the service is one and the same principal.

That is why settings.py lets such a replica listen on loopback only, unless told that the network is trusted.
"""

from typing import Final

from starlette.types import Scope

OPEN_PRINCIPAL: Final = "open"


def principal(scope: Scope) -> str:
    """The principal of a request; owns the sessions that it creates."""
    return OPEN_PRINCIPAL
