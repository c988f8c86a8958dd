"""`jouleserve meter -- COMMAND ARGS...`: like `time`, for joules."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from policies.core.errors import ConfigError
from serve_app.meters import DEFAULT_BACKENDS, EnergyMeter, Measurement

_NOT_EXECUTABLE = 126  # as POSIX shells and `env` say it
_NOT_FOUND = 127
_SIGNAL_BASE = 128
_BAD_INPUT = 2
_STDERR_FD = 2
_SENT_TO_BOTH = (signal.SIGINT, signal.SIGQUIT)  # by the terminal: Ctrl-C, Ctrl-\
_RELAYED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def meter(
    command: Annotated[
        list[str], typer.Argument(help="The command and its arguments, after `--`.")
    ],
    *,
    backends: Annotated[
        str, typer.Option(help="Comma-separated meters, in order of preference.")
    ] = ",".join(DEFAULT_BACKENDS),
    json_output: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON document on stdout; the command's stdout goes to stderr."
        ),
    ] = False,
) -> None:
    """Run a command and report the energy used while it ran.

    GPUs and CPU packages are measured as a whole, with everything else that runs on them; where
    the CPU has no counter, the CPU time of the command's own processes is turned into an estimate.
    The exit code is the command's; 128 + N if signal N ended it, 126 or 127 if it could not start.
    """
    try:
        energy_meter = EnergyMeter([name.strip() for name in backends.split(",") if name.strip()])
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_BAD_INPUT) from error
    with energy_meter:
        energy_meter.begin()
        exit_code = _run(command, stdout_to_stderr=json_output)
        measurement = energy_meter.end()
        missing = energy_meter.missing()
    if json_output:
        document = report(measurement, command, exit_code)
        typer.echo(json.dumps({**document, "missing": missing}))
    else:
        _print_table(measurement)
    raise typer.Exit(exit_code)


def report(measurement: Measurement, command: Sequence[str], exit_code: int) -> dict[str, Any]:
    """Return the JSON document: null joules where nothing could be measured."""
    document = asdict(measurement)
    document.pop("name")
    document["joules_by_kind"] = measurement.joules_by_kind
    document["devices"] = [
        {
            **asdict(device.device),
            "joules": device.joules,
            "average_watts": device.average_watts,
            "source": device.source,
            "covered_s": device.covered_s,
            "resolved_ratio": device.resolved_ratio,
            "reason": device.reason,
            "caveat": device.caveat,
            "anomalies": device.anomalies,
            "anomaly_counts": device.anomaly_counts,
        }
        for device in measurement.devices
    ]
    return {"command": list(command), "exit_code": exit_code, **document}


def _run(command: Sequence[str], *, stdout_to_stderr: bool) -> int:
    """Run the command to its end; returns the exit code in the shell's convention."""
    stdout = _STDERR_FD if stdout_to_stderr else None
    with _signals_relayed() as relay:
        try:
            process = subprocess.Popen(command, stdout=stdout)
        except FileNotFoundError:
            typer.echo(f"jouleserve meter: {command[0]}: no such command", err=True)
            return _NOT_FOUND
        except OSError as error:
            typer.echo(f"jouleserve meter: {command[0]}: {error.strerror}", err=True)
            return _NOT_EXECUTABLE
        relay.attach(process)
        code = process.wait()
    return code if code >= 0 else _SIGNAL_BASE - code


class _Relay:
    """A signal handler that passes the signal on to the command, also one that came too early."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __call__(self, number: int, _frame: object) -> None:
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        """The command has started."""
        self._process = process
        for number in self._early:
            process.send_signal(number)


@contextmanager
def _signals_relayed() -> Iterator[_Relay]:
    """Outlive what the terminal sends to the command as well, and pass the rest on.

    Handlers are not inherited through exec, so the command starts with the default ones; a signal
    that was ignored (nohup, a job in the background) stays ignored for both.
    """
    relay = _Relay()
    handlers: dict[int, Callable[[int, object], None]] = dict.fromkeys(_RELAYED, relay)
    handlers |= dict.fromkeys(_SENT_TO_BOTH, lambda *_: None)
    taken = {n: h for n, h in handlers.items() if signal.getsignal(n) is not signal.SIG_IGN}
    previous = {number: signal.signal(number, handler) for number, handler in taken.items()}
    try:
        yield relay
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_table(measurement: Measurement) -> None:
    """Print one row per device, the sum, and what is missing, on stderr."""
    console = Console(stderr=True, soft_wrap=True)
    table = Table("device", "kind", "joules", "average W", "source")
    for device in measurement.devices:
        joules, watts = _number(device.joules), _number(device.average_watts)
        table.add_row(device.device.name, device.device.kind, joules, watts, device.source)
    if len(measurement.devices) != 1:
        joules, watts = _number(measurement.joules), _number(measurement.average_watts)
        table.add_row("total", "", joules, watts, measurement.source)
    console.print(table)
    coverage = f", coverage {measurement.coverage_ratio:.1%}" if measurement.devices else ""
    console.print(f"duration {measurement.duration_s:.3f} s{coverage}", highlight=False)
    for name, reason in measurement.unavailable.items():
        console.print(f"unavailable: {name}: {reason}", markup=False, highlight=False)
    for name, caveat in measurement.caveats.items():
        console.print(f"note: {name}: {caveat}", markup=False, highlight=False)
    for device in measurement.devices:
        if device.anomaly_counts:
            kinds = ", ".join(f"{count} {kind}" for kind, count in device.anomaly_counts.items())
            bound = "; its joules are a lower bound" if device.anomalies else ""
            console.print(f"sensor: {device.device.id}: {kinds}{bound}", markup=False)


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.3f}"
