"""``baton keys``: the keys of callers from a terminal. It talks to the store itself, so it needs no running replica.

Replicas learn of a change within a second or two. No line but the one that gives a key out holds one.

Every change leaves a line on stderr as replicas leave one in their log (`audit`): whoever runs this keeps it, or not.
"""

import contextlib
import getpass
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import click
import orjson

from service import api_key, key_fields, logs
from service.access import SCOPES
from service.errors import BatonError
from service.settings import Settings
from service.store_command import Read, with_store
from storage.api_keys import ApiKey, ApiKeys
from storage.connect import Client
from storage.keys import KEY_ID, Keyspace

_T = TypeVar("_T")
_PAGE: Final = 100


class _NotFound(click.ClickException):
    """There is no such key; ends with 1."""


def command(read: Read) -> click.Group:
    """The group of commands.

    Args:
        read: the settings; ends the process if they cannot be used.
    """

    @click.group()
    @click.pass_context
    def keys(context: click.Context) -> None:
        """Make and change the keys that callers come with.

        A key names a principal, who owns the sessions that are made with it; several keys may name the same one. Its
        text is shown once, when it is made or rotated. With the first key, replicas that were open ask for keys.

        \b
        Scopes, none of which implies another:
          chat            turns, with or without a session; models; cancelling
          sessions:read   sessions, messages, turns, following a turn
          sessions:write  make, change and delete sessions, append messages
          admin           /v1/admin: the keys of everybody
          act-for         act for end users (X-Baton-User): the principal is then <principal>/<user>

        \b
        For example:
          baton keys create --principal team-a --label purpose=ci --days 90
          baton keys list
          baton keys rotate key_… --overlap-s 3600
          baton keys disable key_…

        It needs the store's settings only, as replicas have them: BATON_REDIS_URL, BATON_SECRET, BATON_NAMESPACE; for
        an embedded store BATON_DATA_DIR, or the directory that `baton serve` is started in.
        """  # noqa: D301 - click wants the character \b, not the two
        context.obj = read

    for one in (_create, _list, _show, _rotate, _disable, _enable, _delete):
        keys.add_command(one)
    return keys


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1/admin/keys does.")


@click.command("create")
@click.option("--principal", required=True, help="Whom it names. `open` takes over what was made without keys.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What it may do; once for each.  [default: chat, sessions:read, sessions:write]",
)
@click.option("--days", type=click.IntRange(1, 36_500), help="It expires after so many days; never, if not given.")
@click.option("--label", "labels", multiple=True, help="name=value, for you; once for each.")
@_as_json
@click.pass_obj
def _create(
    read: Read, principal: str, scopes: tuple[str, ...], days: int | None, labels: tuple[str, ...], as_json: bool
) -> None:
    """Make a key, and show its text this once."""
    pairs = [label.partition("=") for label in labels]
    if unpaired := [label for label, (_, equals, _) in zip(labels, pairs, strict=True) if not equals]:
        raise click.UsageError(f"--label {unpaired[0]}: write name=value")
    expires_ms = 0 if days is None else int(time.time() + days * 86_400) * 1000
    with _told_by_option():
        key_fields.principal(principal)
        words = key_fields.scopes(list(scopes or key_fields.SCOPES_DEFAULT))
        labels_json = key_fields.labels({name: value for name, _, value in pairs})

    async def do(keys: ApiKeys) -> tuple[ApiKey, str]:
        key_id = keys.keyspace.issue_key_id(principal)
        text = api_key.issue(key_id)
        digest = keys.keyspace.key_digest(text)
        await keys.create(
            key_id, digest, principal=principal, scopes=words, expires_ms=expires_ms, labels_json=labels_json
        )
        told.update(key=key_id, principal=principal)
        return await _found(keys, key_id), text

    told: dict[str, str] = {}
    with _audited("create_key", told):
        made = _run(read, do)
    _say(*made, as_json=as_json)


@click.command("list")
@click.option("--principal", default="", help="Keys of this one only.")
@_as_json
@click.pass_obj
def _list(read: Read, principal: str, as_json: bool) -> None:
    """List all keys, without their texts."""
    if principal:
        with _told_by_option():
            key_fields.principal(principal)

    async def do(keys: ApiKeys) -> list[ApiKey]:
        found: list[ApiKey] = []
        ids = await keys.page(after="", limit=_PAGE, principal=principal)
        while ids:
            found += [key for key in await keys.read(ids) if key is not None]
            ids = await keys.page(after=ids[-1], limit=_PAGE, principal=principal)
        return found

    found = _run(read, do)
    if as_json:
        click.echo(orjson.dumps([key_fields.key_object(key) for key in found]))
        return
    rows = [_row(key_fields.key_object(key)) for key in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


def _row(shown: dict[str, Any]) -> tuple[str, ...]:
    """A key as one line of a list."""
    expires = shown["expires_at"]
    state = "disabled" if shown["disabled"] else f"until {expires}" if expires else "no expiry"
    return shown["id"], shown["principal"], _plain(shown["scopes"]), state, _plain(shown["labels"])


@click.command("show")
@click.argument("key_id")
@_as_json
@click.pass_obj
def _show(read: Read, key_id: str, as_json: bool) -> None:
    """Show a key, without its text."""
    _say(_run(read, lambda keys: _found(keys, key_id)), "", as_json=as_json)


@click.command("rotate")
@click.argument("key_id")
@click.option(
    "--overlap-s",
    type=click.IntRange(0, key_fields.OVERLAP_S_MAX),
    default=key_fields.OVERLAP_S_DEFAULT,
    show_default=True,
    help="How long the present text stays good, seconds.",
)
@_as_json
@click.pass_obj
def _rotate(read: Read, key_id: str, overlap_s: int, as_json: bool) -> None:
    """Give a key another text, and show it this once.

    Whoever uses the key has the overlap to change over. Rotated again within it, the oldest text ends at once.
    """

    async def do(keys: ApiKeys) -> tuple[ApiKey, str]:
        await _found(keys, key_id)
        text = api_key.issue(key_id)
        await keys.rotate(key_id, keys.keyspace.key_digest(text), overlap_ms=overlap_s * 1000)
        return await _found(keys, key_id), text

    with _audited("rotate_key", _about(key_id)):
        rotated = _run(read, do)
    _say(*rotated, as_json=as_json)


@click.command("disable")
@click.argument("key_id")
@click.pass_obj
def _disable(read: Read, key_id: str) -> None:
    """Refuse a key, and end what runs with it, within seconds.

    `enable` takes the key again.
    """
    _set_disabled(read, key_id, disabled=True)


@click.command("enable")
@click.argument("key_id")
@click.pass_obj
def _enable(read: Read, key_id: str) -> None:
    """Take a key again that was disabled."""
    _set_disabled(read, key_id, disabled=False)


def _set_disabled(read: Read, key_id: str, *, disabled: bool) -> None:
    async def do(keys: ApiKeys) -> ApiKey:
        await _found(keys, key_id)
        await keys.patch(key_id, disabled=disabled)
        return await _found(keys, key_id)

    with _audited("patch_key", {**_about(key_id), "changed": "disabled"}):
        _run(read, do)
    click.echo(f"{key_id} is {'disabled' if disabled else 'enabled'}.")


@click.command("delete")
@click.argument("key_id")
@click.pass_obj
def _delete(read: Read, key_id: str) -> None:
    """Delete a key, for good. The sessions of its principal stay."""

    async def do(keys: ApiKeys) -> None:
        await _found(keys, key_id)
        await keys.delete(key_id)

    with _audited("delete_key", _about(key_id)):
        _run(read, do)
    click.echo(f"{key_id} is deleted.")


@contextlib.contextmanager
def _audited(action: str, told: dict[str, str]) -> Iterator[None]:
    """Leaves a line about a change; ``told`` may grow meanwhile."""
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except _NotFound:
        outcome = "key_not_found"
        raise
    finally:
        click.echo(logs.audit_line(action, outcome=outcome, by=_who(), by_key="baton keys", **told), err=True)


def _about(key_id: str) -> dict[str, str]:
    return {"key": key_id} if KEY_ID.fullmatch(key_id) else {}


def _who() -> str:
    """The user of this machine who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


@contextlib.contextmanager
def _told_by_option() -> Iterator[None]:
    """What an option may not be, as click tells it."""
    try:
        yield
    except BatonError as error:
        raise click.UsageError(error.message.replace("`", "")) from error


def _say(key: ApiKey, text: str, *, as_json: bool) -> None:
    shown = key_fields.key_object(key, text=text)
    if as_json:
        click.echo(orjson.dumps(shown))
        return
    for name, value in shown.items():
        if name not in ("object", "key"):
            click.echo(f"{name:<16}{_plain(value)}".rstrip())
    if text:
        click.echo("This is the key. It is not shown again:", err=True)
        click.echo(text)


def _plain(value: Any) -> str:
    """A value of a key as people read it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(value)
        case dict():
            return ", ".join(f"{name}={text}" for name, text in value.items())
    return str(value)


async def _found(keys: ApiKeys, key_id: str) -> ApiKey:
    key = (await keys.read([key_id]))[0] if KEY_ID.fullmatch(key_id) else None
    if key is None:
        raise _NotFound("There is no such key; `baton keys list` tells which there are.")
    return key


def _run(read: Read, do: Callable[[ApiKeys], Awaitable[_T]]) -> _T:
    """Does something with the keys of the store that the settings name."""

    async def with_keys(settings: Settings, redis: Client, keyspace: Keyspace) -> _T:
        return await do(ApiKeys(redis, keyspace, budget_s=settings.store_begin_s))

    return with_store(read, with_keys)
