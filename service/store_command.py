"""What the commands have in common that talk to the store themselves, so that they need no running replica.

An embedded store that a replica is running is asked where it runs; one that nobody runs is started for the moment.
Whoever stands in the wrong directory is told so: what is made in a store that begins there, no replica would see.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from service.kept_secret import kept_secret
from service.settings import EX_CONFIG, Settings
from service.store_client import open_store
from storage.connect import Client, Deadlines
from storage.embedded import EmbeddedRefused, EmbeddedValkey, running_url
from storage.first_contact import StoreRefused, first_contact
from storage.keys import Keyspace
from storage.results import StoreUnavailable

_T = TypeVar("_T")
_CONTACT_S: Final = 10.0

Read = Callable[[], Settings]
"""The settings; ends the process if they cannot be used."""
Do = Callable[[Settings, Client, Keyspace], Awaitable[_T]]
"""What is done with the store."""


class Refused(click.ClickException):
    """The store must not be used like this."""

    exit_code = EX_CONFIG


class Away(click.ClickException):
    """The store cannot be asked now."""

    exit_code = 69  # EX_UNAVAILABLE, as `baton check`


def with_store(read: Read, do: Do[_T], *, claim: bool = True, deadlines: Deadlines | None = None) -> _T:
    """Does something with the store that the settings name, after the checks of first contact.

    Args:
        read: the settings.
        do: the work.
        claim: whether a namespace that nobody uses becomes ours: number of buckets and secret are fixed then.
        deadlines: of single calls; None for those of replicas.

    Raises:
        Refused, Away: a command ends with them.
    """
    settings = read()
    secret = settings.secret.get_secret_value() if settings.secret else ""
    url = settings.store_url()
    try:
        with contextlib.ExitStack() as stack:
            if url == "embedded":
                _say_if_absent(settings.data_dir, claim)
                url = running_url(settings.data_dir) or stack.enter_context(EmbeddedValkey.start(settings.data_dir)).url
                secret = secret or kept_secret(settings.data_dir)
            return asyncio.run(_at(settings, url, secret, do, claim, deadlines or Deadlines()))
    except EmbeddedRefused as error:
        raise Refused(str(error)) from error
    except StoreRefused as error:
        raise Refused(" ".join(error.problems)) from error
    except StoreUnavailable as error:
        again = " What was asked for may have been done." if error.outcome_unknown else ""
        raise Away(f"The store does not answer: {error}{again}") from error


def _say_if_absent(data_dir: Path, claim: bool) -> None:
    if data_dir.exists():
        return
    where = f"no store in {data_dir.resolve()} (BATON_DATA_DIR; BATON_REDIS_URL is not set)"
    if not claim:
        raise Refused(f"There is {where}.")
    click.echo(f"warning: there was {where}; one is begun there.", err=True)


async def _at(settings: Settings, url: str, secret: str, do: Do[_T], claim: bool, deadlines: Deadlines) -> _T:
    keyspace = Keyspace(settings.namespace, settings.buckets_of(url), secret.encode())
    redis = open_store(settings, url, connections_max=2, deadlines=deadlines)
    try:
        # With another secret than the replicas', things would be made that nobody can use.
        allowed = settings.redis_eviction_allowed
        await first_contact(redis, keyspace, eviction_allowed=allowed, deadline_s=_CONTACT_S, claim=claim)
        return await do(settings, redis, keyspace)
    finally:
        await redis.aclose()
