"""``baton sessions``: take sessions out of a store and put them into one, from a terminal; see moving.py.

It talks to the store itself, so it needs no running replica, and may run beside them.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click

from service import moving
from service.errors import BatonError
from service.moving import Moved, Stores
from service.settings import Settings
from service.store_command import Away, Read, with_store
from storage.capacity import Capacity
from storage.connect import Client, Deadlines
from storage.index import Index
from storage.keys import Keyspace
from storage.sessions import Sessions
from storage.transfer import Transfer

_DEADLINES: Final = Deadlines(connect_s=5.0, command_s=20.0)  # sessions of tens of MiB, perhaps over a slow line
_BUDGET_S: Final = 60.0
_PROGRESS_S: Final = 5.0
_OWNER: Final = "PRINCIPAL"


class _Failed(click.ClickException):
    """It cannot go on, or not all of it was done; ends with 1."""


def command(read: Read) -> click.Group:
    """The group of commands.

    Args:
        read: the settings; ends the process if they cannot be used.
    """

    @click.group()
    @click.pass_context
    def sessions(context: click.Context) -> None:
        """Take sessions out of a store, and put them into another.

        \b
        A backup, whatever the store is, while replicas serve from it:
          baton sessions export --all --output sessions.jsonl
        Into another store, another number of buckets, under another secret:
          BATON_REDIS_URL=redis+cluster://… BATON_SECRET=… baton sessions import sessions.jsonl

        What is moved is all that a session is: messages, turns, labels, settings, owner and shares. The next request to
        Claude is, byte for byte, what it would have been. Keys of callers (`baton keys`) are not moved.

        It needs the store's settings only, as replicas have them: BATON_REDIS_URL, BATON_SECRET, BATON_NAMESPACE,
        BATON_BUCKETS. The file holds conversations in plain text: it is made readable for you alone; keep it so.

        Both end with 0 if all is well, 1 if something was not moved (told, a line each), 69 if the store cannot be
        reached, 78 if it must not be used like this.
        """  # noqa: D301 - click wants the character \b, not the two
        context.obj = read

    for one in (_export, _import):
        sessions.add_command(one)
    return sessions


@click.command("export")
@click.argument("sessions", nargs=-1, metavar="[SESSION]…")
@click.option("--all", "everything", is_flag=True, help="All sessions; with --owner, all of that owner.")
@click.option("--owner", metavar=_OWNER, help="Whose: needed for a SESSION that is a name and no id.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A new file.  [default: stdout]")
@click.pass_obj
def _export(read: Read, sessions: tuple[str, ...], everything: bool, owner: str | None, output: Path | None) -> None:
    """Write sessions as JSON lines.

    Each stands in the file whole, as it was at one instant. One that is rewound while it is read is read again, and
    told if that keeps happening; one that is not there any more is told and left out, and counts as a failure if you
    have named it. Turns that were running are written as aborted. With --output the file appears when it is complete;
    until then its name ends in .part.

    At any time the ids of one bucket are in memory, and of one session its turns and some messages.
    """
    if everything == bool(sessions):
        raise click.UsageError("Name sessions, or say --all.")
    told = Moved()

    async def do(settings: Settings, redis: Client, keyspace: Keyspace) -> None:
        stores = _stores(settings, redis, keyspace)
        wanted = moving.everything(stores, owner) if everything else moving.addressed(stores, sessions, owner)
        with _written(output) as out:
            await moving.export(stores, wanted, _Progress(out, told, "exported"), _tell, told, by_name=not everything)

    with _ended_by_caller():
        with_store(read, do, claim=False, deadlines=_DEADLINES)
    _sum_up(told, "exported")


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--owner", metavar=_OWNER, help="Whose they are to be.  [default: the file's own]")
@click.option("--skip-existing", is_flag=True, help="Another session in a session's place is no failure.")
@click.pass_obj
def _import(read: Read, file: BinaryIO, owner: str | None, skip_existing: bool) -> None:
    """Put the sessions of FILE (- for stdin) into the store.

    A session with a name gets the id that its owner and name have here. Any other keeps its id; if the bucket of that
    is not here, it gets a new one, told as `old → new`. Nothing that is there is changed, and nothing is evicted to
    make room. Started again after it was cut off, it passes over what it has put back already, with the same new ids.

    Lives begin anew: a session lives for its TTL from now on. One whose absolute end is over is told and left out.

    One session at a time is in memory, of at most 256 MiB. It stops at the first line that is no export.
    """
    told = Moved()

    async def do(settings: Settings, redis: Client, keyspace: Keyspace) -> None:
        lines = _Progress(file, told, "imported")
        await moving.import_(
            _stores(settings, redis, keyspace), lines, _tell, told, owner=owner, skip_existing=skip_existing
        )

    with _ended_by_caller():
        try:
            with_store(read, do, deadlines=_DEADLINES)
        except (BatonError, Away, KeyboardInterrupt):
            _tell(f"{told.done} sessions were imported before this; it can be started again, and goes on.")
            raise
    _sum_up(told, "imported")


def _stores(settings: Settings, redis: Client, keyspace: Keyspace) -> Stores:
    index = Index(redis, keyspace, budget_s=_BUDGET_S)
    capacity = Capacity(
        redis,
        index,
        keyspace,
        per_owner_max=settings.sessions_per_owner_max,
        total_max=settings.sessions_max,
        budget_s=_BUDGET_S,
        on_end=lambda _: None,
        evicts=False,
    )
    sessions = Sessions(redis, keyspace, capacity, budget_s=_BUDGET_S)
    return Stores(keyspace, index, sessions, Transfer(redis, capacity, budget_s=_BUDGET_S))


class _Progress:
    """A file through which sessions go, and which says every few seconds how many there were."""

    def __init__(self, file: BinaryIO, told: Moved, done: str) -> None:
        self._file, self._told, self._done = file, told, done
        self._told_at = time.monotonic()

    def write(self, some: bytes) -> int:
        """As a file."""
        self._tell_now_and_then()
        return self._file.write(some)

    def readline(self, bytes_max: int) -> bytes:
        """As a file."""
        self._tell_now_and_then()
        return self._file.readline(bytes_max)

    def _tell_now_and_then(self) -> None:
        if time.monotonic() - self._told_at > _PROGRESS_S:
            self._told_at = time.monotonic()
            _tell(f"{self._told.done} sessions {self._done} so far")


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[BinaryIO]:
    """What is written to; the file gets its name when all is in it."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if output.exists():
        raise click.UsageError(f"{output} is there already.")
    part = output.with_name(output.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.replace(output)


@contextlib.contextmanager
def _ended_by_caller() -> Iterator[None]:
    """What was asked for, or is in the file, cannot be: told in a sentence."""
    try:
        yield
    except BatonError as error:
        raise _Failed(error.message) from error
    except OSError as error:
        raise _Failed(f"{error.filename or 'The file'}: {error.strerror}.") from error


def _tell(sentence: str) -> None:
    click.echo(sentence, err=True)


def _sum_up(told: Moved, done: str) -> None:
    _tell(f"{told.done} sessions {done}, {told.passed_over} passed over, {told.failed} not {done}.")
    if told.failed:
        sys.exit(1)
