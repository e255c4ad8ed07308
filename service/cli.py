"""The command ``baton``."""

import gc
import os
import signal
import sys
from pathlib import Path

import click

from service import keys_command, sessions_command
from service import settings as settings_module
from service.settings import EX_CONFIG, Settings, SettingsProblem

_WINDOW_TOKENS_MAX = 100_000_000


def _settings() -> Settings:
    for name in settings_module.unknown_variables(os.environ):
        click.echo(f"warning: {name} is not a setting of Baton; is it misspelt?", err=True)
    try:
        return settings_module.read()
    except SettingsProblem as problem:
        for line in problem.problems:
            click.echo(f"error: {line}", err=True)
        sys.exit(EX_CONFIG)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="baton-sessions", prog_name="baton")
def main() -> None:
    """Keeps conversations with Claude in Redis, so that any replica can carry them on.

    \b
    To see it work, without a key:      baton demo
    To run it:                          ANTHROPIC_API_KEY=sk-ant-… baton serve
    To run it without a key:            baton simulate --listen 127.0.0.1:9000
                                        ANTHROPIC_BASE_URL=http://127.0.0.1:9000 baton serve
    """  # noqa: D301 - click wants the character \b, not the two


@main.command()
def serve() -> None:
    """Run one replica; every setting is an environment variable.

    The README lists them under "Settings". Without BATON_REDIS_URL it starts a private Valkey of its own and keeps its
    files in .baton; that is for one replica. For several, give all the same BATON_REDIS_URL and BATON_SECRET and put a
    balancer in front.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # until the server handles them: process 1 would not even notice
        signal.signal(number, lambda *_: sys.exit(0))
    settings = _settings()  # before the rest is loaded: whoever has to mend them sees the problems at once
    gc.disable()  # what is loaded now stays, and to look for garbage in it would be a fifth of the start
    from service.server import serve as run

    gc.freeze()
    gc.enable()
    sys.exit(run(settings))


@main.command()
def check() -> None:
    """Check settings and store as a replica would, and write nothing.

    Ends with 0 if a replica would serve (warnings do not count), 78 if it would refuse to, 69 if the store cannot be
    reached now.
    """
    from service.check import check as run

    sys.exit(run(_settings(), click.echo))


@main.command()
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="host:port; port 0 takes a free one.")
@click.option("--first-byte-ms", default=0, show_default=True, help="Wait before an answer begins.")
@click.option("--delta-ms", default=0, show_default=True, help="Wait between two words of an answer.")
@click.option("--log", "log_path", type=click.Path(path_type=Path), help="Append every request to this file, as JSON.")
@click.option(
    "--window-tokens", "windows", multiple=True, metavar="MODEL=N", help="The window of a model; may be given again."
)
def simulate(listen: str, first_byte_ms: int, delta_ms: int, log_path: Path | None, windows: tuple[str, ...]) -> None:
    """Run a stand-in for Claude, to try Baton without a key.

    It speaks the Messages API over a socket and answers from what it is sent. It knows no language; it can tell your
    name if, and only if, the conversation that it was sent holds it. Point ANTHROPIC_BASE_URL at it.
    """
    from service.simulator.app import Options, run
    from service.simulator.models import set_window

    for window in windows:
        model, _, tokens = window.partition("=")
        if not tokens.isdecimal() or not 1 <= int(tokens) <= _WINDOW_TOKENS_MAX:
            raise click.UsageError(f"--window-tokens {window}: write MODEL=N")
        try:
            set_window(model, int(tokens))
        except ValueError as problem:
            raise click.UsageError(f"--window-tokens {window}: {problem}") from problem
    run(listen, Options(first_byte_ms=first_byte_ms, delta_ms=delta_ms, log_path=log_path))


def _store_settings() -> Settings:
    """The settings as far as they are about the store: whoever makes keys need not be able to reach Claude."""
    try:
        return settings_module.read_for_store()
    except SettingsProblem as problem:
        for line in problem.problems:
            click.echo(f"error: {line}", err=True)
        sys.exit(EX_CONFIG)


main.add_command(keys_command.command(_store_settings))
main.add_command(sessions_command.command(_store_settings))


@main.command()
@click.option("--once", is_flag=True, help="End after the story: 0 if it proves continuity, else 1.")
def demo(once: bool) -> None:
    """Carry a conversation over three replicas, and kill one of them.

    It needs no key, no Redis and no configuration. It starts a private Valkey, a stand-in for Claude, three replicas
    and a front that sends every request to the next replica, each a process of its own on 127.0.0.1, and stops them all
    at the end. The client is the openai SDK; it sends only what is new.

    \b
    It tells, turn by turn, who served what:
      - the replicas answer one after the other, and each knows what was said to the others;
      - one gets SIGKILL in mid-answer: the client sees the cut, and nothing of it is stored;
      - the next turn waits until the dead turn's lease (3 s) is over, then another replica goes on;
      - the killed replica is started anew and carries on, too.
    Then it lists what was checked.

    Without --once everything stays up, with two curls to try, until Ctrl-C.
    """  # noqa: D301 - click wants the character \b, not the two
    from service.demo import run

    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
    sys.exit(run(os.environ, once=once))


@main.command("demo-front", hidden=True)
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="host:port; port 0 takes a free one.")
@click.option("--replica", "replicas", multiple=True, required=True, help="URL of a replica; once for each.")
def demo_front(listen: str, replicas: tuple[str, ...]) -> None:
    """Run the demo's balancer: each request goes to the next replica, and X-Demo-Replica tells which."""
    from service.demo_front import address, run

    try:
        addresses = [address(text) for text in (listen, *replicas)]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run(addresses[0], addresses[1:])


if __name__ == "__main__":
    main()
