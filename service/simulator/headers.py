"""A request's headers: who asks, in which version of the API, with which beta features.

The version decides which of two sets of rules holds. Under 2023-06-01 sampling parameters are fields of a request, a
document may stand in an assistant message, and the text of a user may have citations; since 2026-10-21 none of this is.

A beta feature is asked for with its name in `anthropic-beta`. None of them is imitated: with any such header the fields
of beta features are accepted and ignored, without one they are unknown, as they are to Claude.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from service.simulator.errors import ApiError, invalid

API_VERSION = "2026-10-21"
OLD_API_VERSION = "2023-06-01"
INVALID_KEY = "sk-ant-invalid"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the headers say about the rules.

    Attributes:
        old: whether the rules of 2023-06-01 hold.
        beta: whether any beta feature was asked for.
    """

    old: bool = False
    beta: bool = False


PRESENT = Terms()
"""The present version of the API, without beta features."""


def check_headers(headers: Mapping[str, str]) -> Terms:
    """Check credential, then version: what every endpoint of the API asks for first.

    Args:
        headers: names in lower case.

    Raises:
        ApiError: 401 or 400.
    """
    _check_credential(headers)
    version = headers.get("anthropic-version")
    if version is None:
        raise invalid("anthropic-version: header is required")
    if version not in (API_VERSION, OLD_API_VERSION):
        raise invalid(f'anthropic-version: "{version}" is not a valid version; this service speaks {API_VERSION}')
    betas = [name.strip() for name in headers.get("anthropic-beta", "").split(",")]
    return Terms(old=version == OLD_API_VERSION, beta=any(betas))


def _check_credential(headers: Mapping[str, str]) -> None:
    """Require a key as `Authorization: Bearer` or `x-api-key`; one key stands for a bad one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    key = bearer or headers.get("x-api-key", "").strip()
    if not key:
        raise ApiError("authentication_error", "x-api-key header is required")
    if key == INVALID_KEY:
        raise ApiError("authentication_error", "invalid x-api-key")
