"""The composition root: from settings to an application, and its life.

Start: the store is contacted first, but a store that is away does not keep the listener from opening (store_watch.py).
End: life.py.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from service import telemetry
from service.appending import Appending
from service.asgi import Edge, resource
from service.bodies import Bodies
from service.claude import Claude
from service.context import checkpoint as compacting
from service.context.checkpoint import Compaction
from service.cors import Cors
from service.counting import CountTokens
from service.cursor import Cursors
from service.delivery import Deliveries
from service.dialect import Dialect, offered
from service.endpoint import MessagesEndpoint, Parts, TurnEndpoint
from service.exchange import Exchanges
from service.forking import Forking
from service.gate import Gate
from service.known_keys import KnownKeys
from service.life import Life
from service.model_table import ModelTable
from service.models import Models
from service.openapi import document
from service.opening import Rules
from service.routes.admin import AdminRoutes
from service.routes.compacting import CompactRoutes
from service.routes.models import ModelRoutes
from service.routes.ops import OpsRoutes
from service.routes.sessions import SessionRoutes
from service.routes.shares import ShareRoutes
from service.routes.transfer import TransferRoutes
from service.routes.turns import TurnRoutes
from service.settings import Settings
from service.store_client import open_store
from service.store_watch import StoreWatch
from service.sweeper import Sweeper
from service.turn import Store
from service.vital_signs import watch_loop, watch_store
from storage.api_keys import ApiKeys
from storage.capacity import Capacity
from storage.checkpoints import Checkpoints
from storage.connect import Client, Deadlines
from storage.first_contact import StoreRefused, first_contact
from storage.health import health
from storage.index import Index
from storage.keys import Keyspace
from storage.log import Log
from storage.results import StoreUnavailable
from storage.sessions import Sessions
from storage.shares import Shares
from storage.transfer import Transfer
from storage.turns import Turns
from storage.vitals import vitals

_CONTACT_S: Final = 3.0  # a first contact with the store may take this long
_FIRST_CONTACT_S: Final = 2.0  # and this long is waited for the first one before listening


@dataclass(frozen=True, slots=True)
class Application:
    """One replica: what uvicorn serves, and what draining it needs."""

    asgi: ASGIApp
    life: Life
    exchanges: Exchanges
    bodies: Bodies
    compaction: Compaction

    def drain(self) -> None:
        """Begins nothing any more, and refuses what waits."""
        self.exchanges.drain()
        self.bodies.drain()
        self.compaction.drain()


def build(
    settings: Settings, store_url: str, secret: str, *, on_refused: Callable[[StoreRefused], None]
) -> Application:
    """Puts a replica together; opens no connection yet.

    Args:
        settings: validated.
        store_url: where the store is by now (`embedded` has been started).
        secret: of the namespace.
        on_refused: called if the store must not be used.
    """
    replica = settings.replica or f"{socket.gethostname()}-{os.getpid()}"
    keyspace = Keyspace(settings.namespace, settings.buckets_of(store_url), secret.encode())
    redis = open_store(settings, store_url, connections_max=settings.redis_connections_max)
    beside = open_store(settings, store_url, connections_max=1)
    key = settings.anthropic_api_key.get_secret_value() if settings.anthropic_api_key else None
    claude = Claude(key, settings.anthropic_base_url, connections_max=settings.turns_running_max)
    models = Models(claude, settings.model_aliases, ModelTable(settings.model_traits, settings.model_windows))
    store = _store(settings, redis, keyspace)
    exchanges = Exchanges(settings.turns_running_max)
    compaction = _compaction(settings, claude, models, redis)
    life = Life()
    deliveries = Deliveries(store.turns)
    watch = _watch(settings, redis, beside, keyspace, on_refused)
    keys = ApiKeys(redis, keyspace, budget_s=settings.store_begin_s)
    known = KnownKeys(keys, watch.require)
    gate = _gate(settings, known, keyspace)
    parts = Parts(
        settings=settings,
        claude=claude,
        models=models,
        store=Store(store.sessions, store.turns, store.log),
        rules=_rules(settings, models, replica),
        exchanges=exchanges,
        watch=watch,
        deliveries=deliveries,
        compaction=compaction,
    )
    ops = OpsRoutes(
        watch,
        life,
        gate,
        replica=replica,
        default_model=settings.default_model,
        document=document.rendered(),
    )
    bodies = Bodies(settings.bodies_bytes_max)
    _tell_bounds(settings, bodies, deliveries)
    telemetry.DRAINING.set_function(lambda: life.leaving)
    telemetry.told_build(settings.topology(store_url), keyspace.buckets)
    sweeper = Sweeper(
        store.capacity,
        store.index,
        buckets=keyspace.buckets,
        interval_s=settings.sweep_interval_s,
        ready=lambda: watch.reached,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Router) -> AsyncIterator[None]:
        ask = partial(vitals, redis, deadline_s=_CONTACT_S)
        lasting = (watch.run(), sweeper.run(), known.run(), watch_loop(), watch_store(ask, lambda: watch.reached))
        tasks = [asyncio.create_task(one) for one in lasting]
        models.refresh()
        await watch.looked(_FIRST_CONTACT_S)
        if watch.reached:
            with contextlib.suppress(StoreUnavailable):
                await known.look()
        gate.tell_mode()
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await compaction.aclose()
        await deliveries.aclose()
        await models.aclose()
        await claude.aclose()
        await redis.aclose()
        await beside.aclose()

    dialects = offered(settings, models)
    turns = _session_routes(settings, store, secret, replica, exchanges, dialects)
    admin = AdminRoutes(settings, keys, known)
    compact = CompactRoutes(store.sessions, store.turns, compaction)
    served = _routes(parts, dialects, ops, ModelRoutes(models), *turns, compact, admin)
    routes = [gate.guard(route) for route in served]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    edge = Edge(router, lambda: life.leaving, bodies, Cors(settings.cors_origins))
    return Application(edge, life, exchanges, bodies, compaction)


def _tell_bounds(settings: Settings, bodies: Bodies, deliveries: Deliveries) -> None:
    """What this replica may hold, and how much of it is taken."""
    telemetry.TURNS_RUNNING_MAX.set(settings.turns_running_max)
    telemetry.BODIES_MAX_BYTES.set(settings.bodies_bytes_max)
    telemetry.BODIES_BYTES.set_function(lambda: bodies.held_bytes)
    telemetry.DELIVERIES_WAITING.set_function(lambda: deliveries.waiting)
    telemetry.SESSIONS_MAX.set(settings.sessions_max)
    telemetry.MEMORY_MAX_BYTES.set(telemetry.memory_max_bytes())


def _watch(
    settings: Settings, redis: Client, beside: Client, keyspace: Keyspace, on_refused: Callable[[StoreRefused], None]
) -> StoreWatch:
    """Watches the store that ``redis`` is a client of, by the connections of ``beside``."""
    allowed = settings.redis_eviction_allowed
    look_s = Deadlines().command_s + Deadlines().connect_s
    return StoreWatch(
        partial(first_contact, beside, keyspace, eviction_allowed=allowed, deadline_s=_CONTACT_S),
        partial(health, beside, keyspace, deadline_s=look_s, others=[redis]),
        on_refused,
    )


def _compaction(settings: Settings, claude: Claude, models: Models, redis: Client) -> Compaction:
    checkpoints = Checkpoints(redis, budget_s=settings.store_begin_s, on_call=telemetry.store_called)
    rules = compacting.Rules(
        model=settings.model_aliases.get(settings.compact_model, settings.compact_model),
        deadline_s=settings.compact_deadline_s,
        running_max=settings.compactions_max,
        automatic=settings.context_policy == "compact",
        model_of=models.of,
    )
    return Compaction(claude, checkpoints, rules)


def _gate(settings: Settings, known: KnownKeys, keyspace: Keyspace) -> Gate:
    return Gate(
        settings.auth,
        settings.admin_credential(),
        known,
        keyspace.key_digest,
        loopback=settings.loopback,
        origins=settings.cors_origins,
    )


def _rules(settings: Settings, models: Models, replica: str) -> Rules:
    return Rules(
        replica=replica,
        lease_ms=settings.lease_ms,
        turns_max=settings.turns_per_session_max,
        session_ttl_ms=settings.session_ttl_s * 1000,
        queue_wait_s=settings.queue_wait_s,
        deadline_s=settings.turn_deadline_s,
        max_tokens_default=settings.max_tokens_default,
        cache_life=settings.cache_ttl,
        cache_diagnosed=settings.cache_diagnostics,
        context_policy=settings.context_policy,
        model_of=models.of,
    )


@dataclass(frozen=True, slots=True)
class _Store:
    """The parts of the store that one replica uses."""

    index: Index
    capacity: Capacity
    sessions: Sessions
    turns: Turns
    log: Log
    shares: Shares
    transfer: Transfer


def _store(settings: Settings, redis: Client, keyspace: Keyspace) -> _Store:
    budget_s, told = settings.store_begin_s, telemetry.store_called
    index = Index(redis, keyspace, budget_s=budget_s)
    capacity = Capacity(
        redis,
        index,
        keyspace,
        per_owner_max=settings.sessions_per_owner_max,
        total_max=settings.sessions_max,
        budget_s=budget_s,
        on_end=lambda end: telemetry.SESSIONS_ENDED[end].inc(),
        on_call=told,
    )
    sessions = Sessions(redis, keyspace, capacity, budget_s=budget_s, on_call=told)
    turns = Turns(redis, begin_budget_s=budget_s, settle_budget_s=settings.store_settle_s, on_call=told)
    shares = Shares(redis, budget_s=budget_s, on_call=told)
    transfer = Transfer(redis, capacity, budget_s=budget_s, on_call=told)
    return _Store(index, capacity, sessions, turns, Log(redis, budget_s=budget_s), shares, transfer)


def _session_routes(
    settings: Settings,
    store: _Store,
    secret: str,
    replica: str,
    exchanges: Exchanges,
    dialects: dict[str, Dialect],
) -> tuple[SessionRoutes, ShareRoutes, TurnRoutes, TransferRoutes]:
    appending = Appending(
        store.sessions,
        store.turns,
        replica=replica,
        turns_max=settings.turns_per_session_max,
        queue_wait_s=settings.queue_wait_s,
        draining=lambda: exchanges.draining,
    )
    routes = SessionRoutes(settings, store.sessions, store.index, appending, Cursors(secret.encode()))
    turns = TurnRoutes(
        store.sessions,
        store.turns,
        store.log,
        dialects,
        exchanges,
        followers_max=settings.turns_running_max,
        status_wait_s=settings.status_wait_s,
    )
    forking = Forking(store.sessions, store.turns, store.transfer, replica, settings.turns_per_session_max)
    transfer = TransferRoutes(settings, store.sessions, store.transfer, forking, replica)
    return routes, ShareRoutes(settings, store.sessions, store.shares), turns, transfer


def _routes(
    parts: Parts,
    dialects: dict[str, Dialect],
    ops: OpsRoutes,
    models: ModelRoutes,
    sessions: SessionRoutes,
    shares: ShareRoutes,
    turns: TurnRoutes,
    transfer: TransferRoutes,
    compact: CompactRoutes,
    admin: AdminRoutes,
) -> list[Route]:
    admit = parts.watch.require
    return [
        Route("/v1/chat/completions", TurnEndpoint(parts, dialects["chat"]), methods=["POST"]),
        Route("/v1/messages/count_tokens", CountTokens(parts, dialects["messages"]), methods=["POST"]),
        Route("/v1/messages", MessagesEndpoint(parts, dialects["messages"]), methods=["POST"]),
        *resource("/v1/sessions", admit, GET=sessions.listed, POST=sessions.create),
        *resource("/v1/sessions/stats", admit, GET=sessions.stats),
        *resource("/v1/sessions/import", admit, POST=transfer.imported),
        *resource("/v1/sessions/{session}", admit, GET=sessions.get, PATCH=sessions.patch, DELETE=sessions.delete),
        *resource("/v1/sessions/{session}/fork", admit, POST=transfer.fork),
        *resource("/v1/sessions/{session}/compact", admit, POST=compact.compact),
        *resource("/v1/sessions/{session}/export", admit, GET=transfer.export),
        *resource("/v1/sessions/{session}/messages", admit, GET=sessions.messages, POST=sessions.append),
        *resource("/v1/sessions/{session}/shares", admit, GET=shares.listed),
        *resource(
            "/v1/sessions/{session}/shares/{principal:path}",  # an end user's has a slash
            admit,
            GET=shares.get,
            PUT=shares.put,
            DELETE=shares.delete,
        ),
        *resource("/v1/sessions/{session}/turns", admit, GET=turns.listed),
        *resource("/v1/sessions/{session}/turns/{turn}", admit, GET=turns.get),
        *resource("/v1/sessions/{session}/turns/{turn}/cancel", admit, POST=turns.cancel),
        *resource("/v1/sessions/{session}/turns/{turn}/events", admit, GET=turns.events),
        Route("/v1/models", models.listed),
        Route("/v1/models/{model:path}", models.get),  # a name may have slashes
        *resource("/v1/admin/keys", admit, GET=admin.listed, POST=admin.create),
        *resource("/v1/admin/keys/{key}", admit, GET=admin.get, PATCH=admin.patch, DELETE=admin.delete),
        *resource("/v1/admin/keys/{key}/rotate", admit, POST=admin.rotate),
        Route("/livez", ops.livez),
        Route("/readyz", ops.readyz),
        Route("/health", ops.health),
        Route("/version", ops.version),
        Route("/metrics", ops.metrics),
        Route("/openapi.json", ops.openapi),
        Route("/", ops.page),
    ]
