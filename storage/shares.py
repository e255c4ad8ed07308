"""Who a session is shared with, and in which role; and what has to be known of them to remove one.

    viewer   reads, and follows turns
    writer   also asks for turns, appends, and cancels
    admin    also patches, shares and deletes

The owner has every right and no share. Roles are checked by the script that acts (scripts/shared/role.lua). A share is
in two places that change in one script: a hash of the session, and the grantee's list in the session's bucket, from
which pages are made. Neither has a native expiry, so that what removes the session can take it out of all lists: it
declares these from a prior read, and is told to read again if they have changed.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, cast, get_args

from redis.asyncio import Redis

from storage.keys import SessionRef
from storage.replies import Reply, has_other_grantees, read_share, read_shares, read_unshare
from storage.results import Denied, Gone, IsOwner, Shared, SharesFull
from storage.scripts import OnCall, ScriptRunner, answered, nobody

Role = Literal["viewer", "writer", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
VIEWER: Final = "viewer"
OWNER: Final = "owner"
GRANTEES_MAX: Final = 100
"""Principals that one session may be shared with."""
SHARED_WITH_ONE_MAX: Final = 1_000
"""Sessions of one bucket that may be shared with one principal: pages of its list read them all."""

_ATTEMPTS: Final = 8


class Shares:
    """The shares of one namespace.

    Args:
        redis: see connect.py.
        budget_s: how long one operation may take in all.
        on_call: see scripts.py.
    """

    def __init__(self, redis: Redis, *, budget_s: float, on_call: OnCall = nobody) -> None:
        self._scripts = ScriptRunner(redis, on_call=on_call)
        self._budget_s = budget_s

    async def share(self, ref: SessionRef, grantee: str, role: Role) -> Shared | IsOwner | SharesFull | Denied | Gone:
        """Shares the session, or changes the role that it is shared in; see scripts/share.lua."""
        args = (grantee, role, GRANTEES_MAX, SHARED_WITH_ONE_MAX)
        keys = ref.shared_with([grantee])
        return read_share(await self._scripts.act("share", ref, args, more_keys=keys, budget_s=self._budget_s))

    async def unshare(self, ref: SessionRef, grantee: str) -> bool | IsOwner | Denied | Gone:
        """Shares it no more; False if it was not shared so. See scripts/unshare.lua."""
        keys = ref.shared_with([grantee])
        reply = await self._scripts.act("unshare", ref, (grantee,), more_keys=keys, budget_s=self._budget_s)
        return read_unshare(reply)

    async def of(self, ref: SessionRef, grantee: str = "") -> dict[str, str] | Denied | Gone:
        """Role by principal, of all or of one; see scripts/shares.lua."""
        return read_shares(await self._scripts.act("shares", ref, (grantee,), budget_s=self._budget_s))


async def with_grantees(
    redis: Redis,
    ref: SessionRef,
    remove: Callable[[Sequence[str], Sequence[str]], Awaitable[Reply]],
    *,
    budget_s: float,
) -> Reply:
    """Runs a script that removes a session, with the grantees that it has.

    Args:
        redis: see connect.py.
        ref: the session.
        remove: runs the script with these grantees and with their lists; with none at first, for few have any.
        budget_s: of each look at the grantees.

    Cost: one round trip; for a session that is shared three.
    """
    grantees: list[str] = []

    async def ask() -> dict[bytes, bytes]:
        return await cast("Awaitable[dict[bytes, bytes]]", redis.hgetall(ref.keys[16]))

    for _ in range(_ATTEMPTS):
        reply = await remove(grantees, ref.shared_with(grantees))
        if not has_other_grantees(reply):
            break
        grantees = [grantee.decode() for grantee in await answered(ask, budget_s=budget_s)]
    return reply
