"""A page of a caller's sessions: filters from the query, entries from the index, sessions from the store.

Sessions that expired and were not swept yet are passed over and the page is filled up from the next ones. Filters read
titles and metadata of at most 1,000 entries a page, so a page may be short, or empty, and still have a next one.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request

from service import session_fields
from service.asgi import query_number
from service.errors import BatonError
from storage.index import Index, Listed
from storage.keys import SessionRef
from storage.sessions import Sessions, Snapshot

EXAMINED_MAX: Final = 1_000
_BATCH: Final = 100


@dataclass(frozen=True, slots=True)
class Query:
    """What the query string asks for. ``filters`` holds its filter parameters as they came; it binds the cursor."""

    limit: int
    cursor: str | None
    filters: dict[str, str]
    title_prefix: str
    metadata: dict[str, str]

    def wants(self, title: str, metadata_json: bytes) -> bool:
        """Whether a session of this title and metadata passes all filters."""
        if not title.startswith(self.title_prefix):
            return False
        if not self.metadata:
            return True
        metadata = orjson.loads(metadata_json) if metadata_json else {}
        return all(metadata.get(key) == value for key, value in self.metadata.items())


@dataclass(frozen=True, slots=True)
class Page:
    """Sessions, and the entry after which the next page begins; None if there is nothing more."""

    sessions: list[tuple[str, Snapshot]]
    last: Listed | None


def query(request: Request) -> Query:
    """The query string of a list.

    Raises:
        BatonError: 400 naming the parameter.
    """
    filters: dict[str, str] = {}
    metadata: dict[str, str] = {}
    given = request.query_params.multi_items()
    for name, value in given:
        if name.startswith("metadata[") and name.endswith("]"):
            key = name[len("metadata[") : -1]
            session_fields.check_pair(key, value)
            metadata[key] = filters[name] = value
        elif name == "title_prefix":
            filters[name] = value
        elif name not in ("limit", "cursor"):
            raise BatonError("unknown_field", f"There is no parameter `{name[:64]}`.", param=name[:64])
    if len({name for name, _ in given}) < len(given):
        raise BatonError("invalid_value", "A parameter is given twice.")
    return Query(
        limit=query_number(request, "limit", default=20, low=1, high=100),
        cursor=request.query_params.get("cursor"),
        filters=filters,
        title_prefix=filters.get("title_prefix", ""),
        metadata=metadata,
    )


async def page(index: Index, sessions: Sessions, owner: str, asked: Query, after: Listed | None) -> Page:
    """The next page of the owner's sessions and those shared with it after an entry, or from the front."""
    found: list[tuple[Listed, Snapshot]] = []
    examined = 0
    batch_size = _BATCH if asked.filters else asked.limit + 1
    while True:
        batch = await index.page(owner, after, batch_size)
        refs = [sessions.keyspace.session(one.session_id, owner) for one in batch]
        for listed, snapshot in zip(batch, await _wanted(sessions, refs, asked), strict=True):
            examined += 1
            if snapshot is not None:
                if len(found) == asked.limit:  # one more than fits: there is a next page
                    return _page(found, found[-1][0])
                found.append((listed, snapshot))
            after = listed
            if examined == EXAMINED_MAX:
                return _page(found, after)
        if len(batch) < batch_size:
            return _page(found, None)


def _page(found: list[tuple[Listed, Snapshot]], last: Listed | None) -> Page:
    return Page([(listed.session_id, snapshot) for listed, snapshot in found], last)


async def _wanted(sessions: Sessions, refs: list[SessionRef], asked: Query) -> list[Snapshot | None]:
    """Snapshots of those that pass the filters; None for the others and for those that have gone."""
    if not asked.filters:
        return await sessions.snapshots(refs)
    labels: list[tuple[str, bytes]] = await sessions.labels(refs)
    passed = [ref for ref, (title, metadata) in zip(refs, labels, strict=True) if asked.wants(title, metadata)]
    snapshots: dict[Any, Snapshot | None] = dict(zip(passed, await sessions.snapshots(passed), strict=True))
    return [snapshots.get(ref) for ref in refs]
