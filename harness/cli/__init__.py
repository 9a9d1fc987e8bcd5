"""The command line: parse, call, print. Each verb imports its heavy modules when it runs."""

import os
import signal

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def on_signals(act: object) -> None:
    """Let these signals call `act`, but for those that the caller of the command ignores, as nohup does."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, act)  # type: ignore[arg-type]


def _end(*_: object) -> None:
    os.write(2, b"interrupted before anything was done\n")
    os._exit(130)


def main() -> None:
    """The entry point of the command, which a signal ends with a message while its modules are imported too."""
    on_signals(_end)
    from harness.cli import verbs
    from harness.cli.app import main as call

    assert verbs  # which defines the verbs
    call()
