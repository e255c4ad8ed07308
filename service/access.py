"""Who asks. Without keys everybody who can reach the service is one and the same principal.

That is why settings.py lets such a replica listen on loopback only, unless told that the network is trusted.
"""

import re
from typing import Final

from starlette.types import Scope

OPEN_PRINCIPAL: Final = "open"
ANY_PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._:@+|=-]{0,127})?")
"""What a principal may be: the one of a key, or that of an end user for whom a key acts."""


def principal(scope: Scope) -> str:
    """The principal of a request; owns the sessions that it creates."""
    return OPEN_PRINCIPAL
