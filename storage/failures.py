"""What a failed call is worth: was it executed, will it pass, and in which words to tell it.

Redis refuses before it executes, and the first lines of the scripts make it refuse before their first write. So a
refusal leaves no doubt, and may be followed by the same call again whatever it is. Some refusals pass by themselves
within seconds: a primary steps down, slots move, data is loaded.
"""

import ast
import builtins
import contextlib

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from storage.pool import NoConnection, Unwanted

_NO_REPLICAS = "NOREPLICAS"
_QUOTED = " of pipeline caused error: "
_DISK_IS_FULL = "MISCONF"


class Unreached(ConnectionError):
    """There is no primary to ask just now; nothing was sent."""


def surely_not_executed(error: RedisError) -> bool:
    """Whether Redis refused, or was never reached."""
    if isinstance(error, ResponseError | BusyLoadingError | AuthenticationError | AuthorizationError):
        return True
    return never_sent(error)


def never_sent(error: RedisError) -> bool:
    """Whether no connection was there to send anything on, or nobody who still wanted it."""
    return isinstance(error, Unreached | NoConnection | Unwanted)


def of_our_own(error: RedisError) -> bool:
    """Whether it was our own pool that was full, or our own caller who has gone: it says nothing about the server."""
    return isinstance(error, Unwanted) or (isinstance(error, NoConnection) and error.pool_is_full)


def silent(error: RedisError) -> bool:
    """Whether a server let us wait in vain, for an answer or for a connection."""
    return isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)


def without_command(error: RedisError) -> RedisError:
    """The error of a pipeline as the server told it: redis-py quotes the command in it, with its arguments."""
    _, quoted, told = str(error).rpartition(_QUOTED)
    if quoted:
        with contextlib.suppress(ValueError, SyntaxError):
            told = str(ast.literal_eval(told)[0])  # it writes what was told as a tuple of Python's
        error.args = (told,)
    return error


def moving(error: RedisError) -> bool:
    """Whether the slot is on its way to another node; that is over within seconds."""
    return isinstance(error, AskError | TryAgainError)


def refused_for_now(error: RedisError) -> bool:
    """Whether a running server will not do this just now: a failover, a move of slots, too few replicas."""
    if moving(error) or isinstance(error, ReadOnlyError | ClusterDownError):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(_NO_REPLICAS)


def takes_no_writes(error: RedisError) -> bool:
    """Whether a server takes no writes now, for whatever reason that passes: it loads its data, its disk is full."""
    if refused_for_now(error) or isinstance(error, BusyLoadingError | MasterDownError):
        return True
    return str(error).startswith(_DISK_IS_FULL)


def in_words(error: BaseException) -> str:
    """The cause of a failure for an operator: without a credential, and without the text of errors we do not know."""
    match error:
        case AuthenticationError() | AuthorizationError():
            return "Redis refuses the user name or the password."
        case NoPermissionError():
            return f"Redis denies it: {error}"
        case BusyLoadingError():
            return "Redis is still loading its data."
        case ReadOnlyError():
            return "This is a replica: it takes no writes."
        case ClusterDownError():
            return "The cluster is down: it has no primary for some slots."
        case OutOfMemoryError():
            return "Redis is full (maxmemory)."
        case TimeoutError() | builtins.TimeoutError():
            return "Redis did not answer in time."
        case ConnectionError():
            return f"No connection to Redis: {error}"
    return f"Redis answered with an error ({type(error).__name__})."
