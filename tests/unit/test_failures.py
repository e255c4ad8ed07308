"""What a failed call is worth, and in which words it is told."""

import pytest
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from storage.failures import (
    Unreached,
    in_words,
    never_sent,
    of_our_own,
    refused_for_now,
    surely_not_executed,
    without_command,
)
from storage.pool import NoConnection, Unwanted

POOL = NoConnection("No connection available.", pool_is_full=True)
UNWANTED = Unwanted("nobody wants it any more")
REFUSED = NoConnection("Error 111 connecting to 127.0.0.1:1. Connect call failed.")
BROKEN = ConnectionError("Connection closed by server.")
SILENT = TimeoutError("Timeout reading from 127.0.0.1:1")
NO_REPLICAS = ResponseError("NOREPLICAS Not enough good replicas to write.")
PASSING = [MovedError("1 a:1"), AskError("1 a:1"), ClusterDownError("x"), TryAgainError("x"), ReadOnlyError("x")]


@pytest.mark.parametrize("error", [*PASSING, NO_REPLICAS])
def test_what_passes_by_itself_was_not_executed(error: RedisError) -> None:
    assert refused_for_now(error) and surely_not_executed(error) and not never_sent(error)


@pytest.mark.parametrize("error", [POOL, REFUSED, UNWANTED, Unreached("nobody")])
def test_what_was_never_sent(error: RedisError) -> None:
    assert never_sent(error) and surely_not_executed(error) and not refused_for_now(error)
    assert of_our_own(error) is (error in (POOL, UNWANTED))


def test_the_error_of_a_pipeline_is_told_without_the_command_that_it_quotes() -> None:
    told = ResponseError("NOREPLICAS Not enough 'good' replicas to write.")
    quoted = f"Command # 1 (HSET k f SECRET) of pipeline caused error: {told.args}"
    error = without_command(ResponseError(quoted))
    assert str(error) == str(told) and refused_for_now(error)
    assert str(without_command(ResponseError("ERR odd"))) == "ERR odd"
    odd = without_command(ResponseError("Command # 2 (GET k) of pipeline caused error: no tuple"))
    assert str(odd) == "no tuple"


@pytest.mark.parametrize("error", [BROKEN, SILENT])
def test_what_may_have_been_executed(error: RedisError) -> None:
    assert not surely_not_executed(error) and not refused_for_now(error)


@pytest.mark.parametrize("error", [BusyLoadingError("x"), AuthenticationError("x"), OutOfMemoryError("x")])
def test_what_is_refused_and_does_not_pass(error: RedisError) -> None:
    assert surely_not_executed(error) and not refused_for_now(error) and not never_sent(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AuthenticationError("WRONGPASS hidden"), "Redis refuses the user name or the password."),
        (NoPermissionError("User baton has no permissions to run the 'info' command"), "'info' command"),
        (BusyLoadingError("x"), "still loading"),
        (ReadOnlyError("x"), "takes no writes"),
        (ClusterDownError("x"), "The cluster is down"),
        (OutOfMemoryError("x"), "full"),
        (SILENT, "did not answer in time"),
        (REFUSED, "No connection to Redis: Error 111"),
        (ResponseError("hidden"), r"an error \(ResponseError\)"),
    ],
)
def test_words(error: RedisError, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        raise ValueError(in_words(error))
    assert "hidden" not in str(caught.value)
