"""How a turn of a session is opened: the lease, the session that must exist or be made, the wait for other turns.

    begin ─┬─ Begun      the lease is ours
           ├─ Running    the request was sent before and that turn runs
           ├─ Answered   the request was sent before and that turn is committed
           ├─ Busy       another turn runs: wait and ask again, or refuse
           ├─ Gone       no such session: create it and ask again, or refuse
           └─ whatever else is an error for the caller

What a crash leaves in between is a session without a turn (its creation is noted as this turn's), or a lease that runs
out. ``unsettled`` says whether the store may know the turn: then it must be given a verdict, whatever happens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from service import telemetry
from service.addressing import Address
from service.conflict import OnConflict, Patience
from service.context.caching import Setting
from service.context.view import Policy
from service.errors import (
    BatonError,
    history_moved,
    key_reused,
    role_too_small,
    session_corrupt,
    session_exists,
    session_not_found,
    sessions_full,
    store_unavailable,
)
from service.interrupt import Interrupt
from service.model_table import Model
from storage.keys import new_nonce
from storage.results import (
    Answered,
    BeginResult,
    Begun,
    Busy,
    Corrupt,
    Created,
    Denied,
    Full,
    Gone,
    KeyReused,
    Moved,
    Running,
    Settled,
    StoreUnavailable,
    TurnsFull,
)
from storage.sessions import NewSession, Sessions
from storage.turns import Request, Turns

_CREATIONS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Rules:
    """What a replica's settings say about turns."""

    replica: str
    lease_ms: int
    turns_max: int
    session_ttl_ms: int
    queue_wait_s: float
    deadline_s: float
    max_tokens_default: int
    cache_life: Setting
    cache_diagnosed: bool
    context_policy: Policy
    model_of: Callable[[str], Model]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says about the turn that it wants, whatever it asks of Claude.

    Attributes:
        address: the session.
        request: which request it is.
        on_conflict: what to do if another turn of the session is running.
        expected: the head that the session must have; "" for any.
        wanted: asked before each begin: False if its caller has gone and will send it again. Then it must not begin:
            its repetition may have begun before it, and nothing would tell that the two are one.
        strict: rather refuse than begin a new epoch.
    """

    address: Address
    request: Request
    on_conflict: OnConflict
    expected: str = ""
    wanted: Callable[[], bool] = lambda: True
    strict: bool = False


class Opening:
    """The opening of one turn.

    Args:
        sessions, turns: the store.
        rules: of this replica.
        wish: what the request says about it.
        turn_id: new.
        model: that a session made for the turn gets.
        streamed: whether its answer will be logged as it comes.

    Attributes:
        unsettled: the store may know this turn, and it has no verdict that we know of.
        waited_s: how long the lease was waited for.
    """

    def __init__(
        self,
        sessions: Sessions,
        turns: Turns,
        rules: Rules,
        wish: Wish,
        *,
        turn_id: str,
        model: str,
        streamed: bool,
    ) -> None:
        self._sessions = sessions
        self._turns = turns
        self._rules = rules
        self._address = wish.address
        self._ref = wish.address.ref
        self._expected = wish.expected
        self._wanted = wish.wanted
        self._turn_id = turn_id
        self._model = model
        self._streamed = streamed
        self._patience = Patience(wish.on_conflict, rules.queue_wait_s)
        self._asked = False
        self._created = False  # this turn made the session, or may have
        self.unsettled = False
        self.waited_s = 0.0

    async def begin(self, request: Request, record: bytes) -> Begun | Running | Answered:
        """Takes the lease, or tells which earlier turn the request is; may be asked again.

        Args:
            request: which one it is.
            record: of the pending turn.

        Raises:
            BatonError: why there will be no turn.
        """
        while True:
            with self._turns.beginning():
                result = await self._begun(request, record)
            match result:
                case Begun() as begun:
                    if begun.dead_turn_id:
                        telemetry.DEAD_TURNS_FOUND.inc()
                        telemetry.log.warning("dead_turn_found", session=self._ref.id, turn=begun.dead_turn_id)
                    if self.waited_s:
                        telemetry.PHASE_SECONDS["queue"].observe(self.waited_s)
                    return begun
                case Running() | Answered() as earlier:
                    return earlier
                case Busy() as busy:
                    started = time.perf_counter()
                    await self._patience.wait(busy)
                    self.waited_s += time.perf_counter() - started
                case Moved() if request.replaces:
                    raise BatonError(
                        "turn_cut_short",
                        f"The answer to this request was cut short (turn {request.replaces}), and the conversation has "
                        "gone on since. Ask again in a request of its own.",
                        headers={"x-turn-id": request.replaces},
                    )
                case refused:
                    raise self._refusal(refused)

    async def _begun(self, request: Request, record: bytes) -> BeginResult:
        """Asks for the lease, of a session that is made if it must be new, or is not there and may be made."""
        if self._address.mode == "create" and not self._asked:
            # Sent before, it may have made the session itself; then there is no other turn in it yet.
            again = bool(request.key) or request.retried
            await self._create(must_be_new=not again)
            self._expected = "unused" if again else ""
        self._asked = True
        result = await self._ask(request, record)
        for _ in range(_CREATIONS_MAX):
            if not isinstance(result, Gone) or not self._may_create:
                break
            await self._create(must_be_new=False)
            result = await self._ask(request, record)
        return result

    @property
    def _may_create(self) -> bool:
        """Whether a session that is not there is made; one that an earlier attempt made may have gone with it."""
        return self._expected == "unused" or (self._address.mode == "any" and not self._expected)

    def _refusal(self, refused: KeyReused | Moved | Settled | TurnsFull | Denied | Gone | Corrupt) -> BatonError:
        match refused:
            case KeyReused(turn_id):
                return key_reused(turn_id)
            case Moved(head):
                return session_exists() if self._expected == "unused" else history_moved(head)
            case TurnsFull():
                return BatonError("max_turns_reached", "The session has had all the turns it may have.")
            case Corrupt():
                telemetry.log.error("session_corrupt", session=self._ref.id)
                return session_corrupt()
            case Denied(role):
                return role_too_small(role, "writer")
            case Gone():
                return session_not_found()
            case Settled():
                return Interrupt.LEASE_LOST.told()

    async def _ask(self, request: Request, record: bytes) -> BeginResult:
        if not self._wanted():
            raise Interrupt.HUNG_UP.told()
        self.unsettled = True
        started = time.perf_counter()
        try:
            result = await self._turns.begin(
                self._ref,
                self._turn_id,
                replica=self._rules.replica,
                lease_ms=self._rules.lease_ms,
                record=record,
                turns_max=self._rules.turns_max,
                request=request,
                streamed=self._streamed,
                # A turn can take the place of the last one only; that stands where the expected one stood.
                expected=request.replaces or self._expected,
                wanted=self._wanted,
            )
        except StoreUnavailable as error:
            self.unsettled = error.outcome_unknown or self._created
            raise store_unavailable(error) from error
        self.unsettled = isinstance(result, Begun) or self._created
        telemetry.PHASE_SECONDS["begin"].observe(time.perf_counter() - started)
        return result

    async def _create(self, *, must_be_new: bool) -> None:
        new = NewSession(
            nonce=new_nonce(),
            ttl_ms=self._rules.session_ttl_ms,
            name=self._address.name,
            creating_turn_id=self._turn_id,
            model=self._model,
        )
        self.unsettled = self._created = True
        try:
            result = await self._sessions.create(self._ref, new)
        except StoreUnavailable as error:
            raise store_unavailable(error) from error
        if isinstance(result, Created):
            telemetry.SESSIONS_CREATED.inc()
            return
        self.unsettled = self._created = False
        if isinstance(result, Full):
            raise sessions_full()
        if must_be_new:
            raise session_exists()
