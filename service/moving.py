"""Many sessions to a file, and back into this or another store: what `baton sessions` does, without the terminal.

Out: each session goes whole into a spool first, so that one which is rewound meanwhile can be read again, and nothing
of it stands in the file unless all of it does. In: each session is one script, repeatable by the nonce of its creation,
so a run that was cut off is simply started again. At any time one session is held, and no more.

Where a session goes: one with a name gets the id that its owner and name have in the target; any other keeps its id,
unless that is in a bucket which the target does not have. Then the new id is derived from the old one, so that it is
the same again in the next run.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from shutil import copyfileobj
from tempfile import SpooledTemporaryFile
from typing import Final, Protocol

from service import access, addressing, exporting
from service.archive import SESSION_BYTES_MAX, Archived, Reader
from service.errors import BatonError, invalid_value
from storage.index import Index
from storage.keys import SESSION_ID, Keyspace, SessionRef
from storage.results import Created, Exists, Full, Gone, SessionTorn, StoreUnavailable
from storage.sessions import Sessions
from storage.transfer import Transfer

_ATTEMPTS: Final = 5
_SPOOL_BYTES: Final = 8 * 1_048_576  # in memory; more of one session goes to a temporary file

Say = Callable[[str], None]


class Written(Protocol):
    """Where lines go."""

    def write(self, some: bytes, /) -> int:
        """As of a file."""


class Read(Protocol):
    """Where lines come from."""

    def readline(self, bytes_max: int, /) -> bytes:
        """As of a file."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The store, as far as sessions move."""

    keyspace: Keyspace
    index: Index
    sessions: Sessions
    transfer: Transfer


@dataclass(slots=True)
class Moved:
    """How many sessions there were.

    Attributes:
        done: exported or imported.
        passed_over: that are not there any more, or there already: nothing is wrong with that.
        failed: that should have been moved, and were not.
    """

    done: int = 0
    passed_over: int = 0
    failed: int = 0


async def everything(stores: Stores, owner: str | None) -> AsyncIterator[tuple[str, SessionRef | None]]:
    """All sessions, each once, as their owners address them; None for one that went away.

    Cost: two round trips for a thousand sessions; held are the ids of one bucket.
    """
    for bucket in range(stores.keyspace.buckets):
        seen: set[str] = set()
        async for page in stores.index.walk(bucket, owner):
            fresh = [session_id for session_id in page if session_id not in seen]
            seen.update(fresh)
            for session_id, ref in zip(fresh, await stores.index.owned(fresh), strict=True):
                yield session_id, ref


async def addressed(
    stores: Stores, sessions: tuple[str, ...], owner: str | None
) -> AsyncIterator[tuple[str, SessionRef | None]]:
    """Those that are named, by id, or by name where the owner is given; None for one that is not there.

    Raises:
        BatonError: invalid_session_id, or invalid_value for a name without its owner.
    """
    for session in sessions:
        if session.startswith("sess_"):
            known = stores.keyspace.is_session_id(session)
            (ref,) = await stores.index.owned([session]) if known else [None]
            yield session, ref if ref is None or owner in (None, ref.principal) else None
        elif owner is None:
            raise invalid_value("SESSION", f"{session[:64]} is a name, which needs --owner")
        else:
            yield session, addressing.named(stores.keyspace, owner, session, param="SESSION")


async def export(
    stores: Stores,
    wanted: AsyncIterator[tuple[str, SessionRef | None]],
    out: Written,
    tell: Say,
    told: Moved,
    *,
    by_name: bool = False,
) -> None:
    """Writes sessions; those that cannot be read are told, and left out.

    Args:
        stores: from where.
        wanted: which.
        out: where to.
        tell: told of what is left out, and why.
        told: counts.
        by_name: each was asked for by itself, so that one which is not there is missed.

    Raises:
        StoreUnavailable: the store does not answer; what is written stays good as far as it is.
    """
    async for name, ref in wanted:
        try:
            is_there = ref is not None and await _export_one(stores, ref, out)
        except BatonError as error:
            if isinstance(error.__cause__, StoreUnavailable):
                raise error.__cause__ from None
            told.failed += 1
            tell(f"{name}: not exported: {error.message}")
            continue
        except SessionTorn:
            told.failed += 1
            tell(f"{name}: not exported: the store has lost a part of it.")
            continue
        if is_there:
            told.done += 1
        else:
            told.failed += by_name
            told.passed_over += not by_name
            tell(f"{name}: is not there: it has expired or was deleted.")


async def _export_one(stores: Stores, ref: SessionRef, out: Written) -> bool:
    """Whether it is there. One that is rewound or goes meanwhile is read anew, a few times."""
    for attempt in range(1, _ATTEMPTS + 1):
        whole = await stores.transfer.read(ref)
        if isinstance(whole, Gone):
            return False
        with SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            try:
                async for some in exporting.lines(stores.sessions, stores.transfer, ref, whole):
                    spool.write(some)
            except BatonError as error:
                if error.code not in ("history_moved", "session_corrupt") or attempt == _ATTEMPTS:
                    raise
                continue
            spool.seek(0)
            copyfileobj(spool, out)
            return True
    raise AssertionError("the last attempt returns or raises")


async def import_(
    stores: Stores, lines: Read, tell: Say, told: Moved, *, owner: str | None, skip_existing: bool
) -> None:
    """Puts the sessions of a file into the store.

    Args:
        stores: where to.
        lines: the file.
        tell: told of every session that gets another id (old → new), or is not put back, and why.
        told: counts.
        owner: whose they are to be; None for the file's own.
        skip_existing: whether another session that stands in a session's place is no failure.

    Raises:
        BatonError: the file is cut short or bent; the sessions before that place are put back.
        StoreUnavailable: the store does not answer. The session at hand may be there or not; either way the file can be
            imported again.
    """
    reader = Reader()
    while raw := lines.readline(SESSION_BYTES_MAX + 1):
        archived = reader.feed(raw)
        if archived is not None:
            await _import_one(stores, archived, tell, told, owner=owner, skip_existing=skip_existing)
    reader.close()


async def _import_one(
    stores: Stores, archived: Archived, tell: Say, told: Moved, *, owner: str | None, skip_existing: bool
) -> None:
    old, restored = archived.session_id, archived.restored
    if restored.absolute_end_ms and restored.absolute_end_ms <= time.time() * 1000:
        told.passed_over += 1
        tell(f"{old}: has expired meanwhile: its absolute end is over.")
        return
    ref = _place(stores.keyspace, archived, owner or archived.owner)
    match await stores.transfer.restore(ref, restored, archived.shares):
        case Created(repeated=True):
            told.passed_over += 1
            tell(f"{old}: is there already{_as(old, ref)}.")
        case Created(not_shared=left_out):
            told.done += 1
            if ref.id != old:
                tell(f"{old} → {ref.id}")
            for grantee in left_out:
                tell(f"{ref.id}: not shared with {grantee}: as many sessions are as may be.")
        case Exists() if skip_existing:
            told.passed_over += 1
            tell(f"{old}: skipped: another session is in its place{_as(old, ref)}.")
        case Exists():
            told.failed += 1
            tell(f"{old}: not imported: another session is in its place{_as(old, ref)}.")
        case Full(cap):
            told.failed += 1
            limit = "BATON_SESSIONS_PER_OWNER_MAX" if cap == "owner" else "BATON_SESSIONS_MAX"
            tell(f"{old}: not imported: there is no room ({limit}).")


def _as(old: str, ref: SessionRef) -> str:
    return "" if ref.id == old else f", as {ref.id}"


def _place(keyspace: Keyspace, archived: Archived, owner: str) -> SessionRef:
    """Where the session goes.

    Raises:
        BatonError: the file has no owner, id or name that there can be.
    """
    old, name = archived.session_id, archived.restored.name
    if not access.ANY_PRINCIPAL.fullmatch(owner):
        raise invalid_value("owner", "must be a principal")
    if name:
        return addressing.named(keyspace, owner, name, param="name")
    if not SESSION_ID.fullmatch(old):
        raise invalid_value("id", "must be that of a session")
    return keyspace.session(old if keyspace.is_session_id(old) else keyspace.keyed(owner, "move", old), owner)
