"""``baton check``: the checks of first contact, told to a person. Nothing is written to the store.

Ends with 0, with 78 (EX_CONFIG) if a replica would refuse to serve, or with 69 (EX_UNAVAILABLE) if the store cannot be
asked now. No sentence holds a credential.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from service.settings import EX_CONFIG, Settings
from service.store_client import open_store
from storage.first_contact import StoreRefused, first_contact
from storage.keys import Keyspace
from storage.results import StoreUnavailable

EX_UNAVAILABLE: Final = 69
_DEADLINE_S: Final = 10.0


def check(settings: Settings, say: Callable[[str], None]) -> int:
    """Checks what a replica with these settings would check.

    Args:
        settings: validated.
        say: told every sentence.

    Returns:
        The exit code.
    """
    say("ok: the settings can be used.")
    url = settings.store_url()
    if url == "embedded":
        say(f"ok: the store is embedded: `baton serve` starts it, in {settings.data_dir}.")
        return 0
    return asyncio.run(_check_store(settings, url, say))


async def _check_store(settings: Settings, url: str, say: Callable[[str], None]) -> int:
    secret = settings.secret.get_secret_value() if settings.secret else ""
    keyspace = Keyspace(settings.namespace, settings.buckets_of(url), secret.encode())
    redis = open_store(settings, url, connections_max=1)
    try:
        warnings = await first_contact(
            redis,
            keyspace,
            eviction_allowed=settings.redis_eviction_allowed,
            deadline_s=_DEADLINE_S,
            claim=False,
        )
    except StoreRefused as refused:
        for problem in refused.problems:
            say(f"error: {problem}")
        return EX_CONFIG
    except StoreUnavailable as error:
        say(f"error: {error}")
        return EX_UNAVAILABLE
    finally:
        await redis.aclose()
    for warning in warnings:
        say(f"warning: {warning}")
    buckets = "1 bucket" if keyspace.buckets == 1 else f"{keyspace.buckets} buckets"
    say(f"ok: the store can be used; namespace {keyspace.namespace!r} has {buckets}.")
    return 0
