"""A client of the store as the settings say it is reached."""

from service import telemetry
from service.settings import Settings
from storage.connect import Client, Credential, Deadlines, connect


def open_store(
    settings: Settings,
    url: str,
    *,
    connections_max: int,
    deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
) -> Client:
    """A client of the store; opens no connection yet."""
    password = settings.redis_sentinel_password
    return connect(
        url,
        connections_max=connections_max,
        deadlines=deadlines,
        tls=settings.tls(),
        sentinel=Credential(settings.redis_sentinel_username, password.get_secret_value() if password else None),
        on_busy=telemetry.STORE_BUSY.inc,
    )
