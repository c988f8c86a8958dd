"""Keeps one gate up to date: its keys from their file, its metrics to the application's ledger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serve_app.observers.gate_metrics import GATE_METRICS
from serve_app.security.refusals import REASONS

if TYPE_CHECKING:
    from serve_app.push import Family
    from serve_app.security.gate import Gate
    from serve_app.settings import EnergySettings

log = logging.getLogger("ray.serve")

CHECK_EVERY_S = 1.0
_TELL_EVERY = 5  # checks


def families_of_gate(gate: Gate, labels: dict[str, str]) -> list[Family]:
    """The gate's metrics as plain data."""
    values: dict[str, list[tuple[dict[str, str], float]]] = {
        "jouleserve_http_refused_requests": [
            ({"reason": reason}, float(gate.refused[reason])) for reason in REASONS
        ]
    }
    if gate.keys is not None:
        values["jouleserve_api_keys"] = [({}, float(len(gate.keys.ring)))]
        values["jouleserve_api_keys_file_in_force"] = [({}, float(gate.keys.in_force))]
        values["jouleserve_api_keys_file_errors"] = [({}, float(gate.keys.errors))]
    return [
        (
            spec.name,
            spec.help,
            spec.kind,
            [
                (
                    f"{spec.name}_total" if spec.kind == "counter" else spec.name,
                    labels | more,
                    value,
                )
                for more, value in values[spec.name]
            ],
        )
        for spec in GATE_METRICS
        if spec.name in values
    ]


class GateKeeper:
    """A thread that looks at the keys file once a second, and calls `tell` every five."""

    def __init__(
        self, gate: Gate, tell: Callable[[], None], check_every_s: float = CHECK_EVERY_S
    ) -> None:
        self._gate = gate
        self._tell = tell
        self._every_s = check_every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jouleserve-gate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while not self._stopped.wait(self._every_s):
            if self._gate.keys is not None:
                self._gate.keys.check()
            if count % _TELL_EVERY == 0:
                self._tell()
            count += 1


class LedgerTeller:
    """Tells the application's ledger of a gate in a process of Serve."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._lost = False

    def __call__(self) -> None:
        """A ledger that is away is found or made again next time; that is said once."""
        from ray import serve

        from serve_app.ledger import ledger_handle

        try:
            context = serve.get_replica_context()
            replica = context.replica_id.unique_id
            labels = {
                "application": context.app_name,
                "deployment": context.deployment,
                "replica": replica,
            }
            ledger = ledger_handle(context.app_name)
            ledger.gate.remote(replica, families_of_gate(self._gate, labels))
        except Exception as error:  # whatever Ray raises: the gate stands
            if not self._lost:
                log.warning("the gate's metrics are not told: %s", type(error).__name__)
            self._lost = True
        else:
            self._lost = False


def gate_options(energy: EnergySettings) -> dict[str, Any]:
    """What `GateMiddleware` is added with, in a process of Serve."""
    return {"settings": energy.security.model_dump(mode="json"), "on_start": keep}


def keep(gate: Gate) -> None:
    """Keep the gate of this process for as long as the process lives."""
    GateKeeper(gate, LedgerTeller(gate)).start()
