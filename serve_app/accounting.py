"""One replica's energy accounting at run time: the meter, the engine's step tap and the books
joined.

Single-threaded: every method runs on the replica's event loop.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from policies.core.attribution import RequestEnergy, TokenWeigher, Weigher
from policies.core.energy import EnergyBooks
from policies.core.window import Window
from policies.model.attribution import ModelWeigher
from policies.model.fitted import FittedModel
from serve_app.demand import Demand
from serve_app.engine.access import WARM_UP_ID, external_id, response_id
from serve_app.engine.step_link import StepEvent, StepReceiver
from serve_app.meter_windows import WindowReader
from serve_app.meters import DeviceKind, EnergyMeter, Source

_KEPT_RESPONSES = 4096
_HORIZON_S = 30.0


@dataclass(slots=True)
class _Response:
    """The engine requests behind one OpenAI response. `settled[:reported]` have been handed to the
    metrics; the response itself sums them all."""

    open_ids: set[str] = field(default_factory=set)
    settled: list[RequestEnergy] = field(default_factory=list)
    reported: int = 0

    def unreported(self) -> RequestEnergy:
        energy = RequestEnergy.total(self.settled[self.reported :])
        self.reported = len(self.settled)
        return energy


class EnergyAccountant:
    """Keeps the books of one replica.

    Feed it engine events (through its `StepReceiver`); call `close_window` once per tick and
    `response_energy` when a response ends. `on_aborted` hears of requests that left without an
    answer. The engine says when a request is gone; a response that ends before (a stop string
    found while detokenising) settles its request itself. Either way once.
    """

    def __init__(self, meter: EnergyMeter, weigher: Weigher | None = None) -> None:
        self._meter = meter
        self.receiver = StepReceiver(self._on_event)
        self.books = EnergyBooks(time.monotonic(), weigher)
        self.arrivals = Window(_HORIZON_S)  # value: prompt tokens
        self.demand = Demand()
        self.on_aborted: Callable[[RequestEnergy], None] | None = None
        self.on_step: Callable[[StepEvent], None] | None = None
        self.windows = WindowReader(meter, time.monotonic())
        self._idle_watts: dict[str, float] = {}
        self._responses: OrderedDict[str, _Response] = OrderedDict()
        self._finished: list[str] = []  # internal ids the engine is done with, not settled yet
        self._aborted: list[str] = []
        self._read()

    # ---- engine events

    def drain(self) -> None:
        """Handle every engine event that has arrived and settle the requests that ended."""
        self.receiver.drain()
        if not (self._finished or self._aborted):
            return
        self._refresh()
        now_s = time.monotonic()
        for request_id in self._finished:
            self._settle(request_id, now_s)
        for request_id in self._aborted:
            entry = self._settle(request_id, now_s)
            if entry is not None and self.on_aborted is not None:
                self.on_aborted(entry.unreported())
        self._finished.clear()
        self._aborted.clear()

    def _on_event(self, event: StepEvent) -> None:
        if event.kind == "a":
            for share in event.shares:
                self._arrive(share.request_id, event.time_s, share.prefill_tokens)
        elif event.kind == "b":
            self.books.begin_step(event.time_s, event.shares)
        elif event.kind == "e":
            self.books.end_step(event.time_s)
            self._finished += event.finished
        elif event.kind == "f":
            self._aborted += event.finished
        elif event.kind == "d":
            self.books.drop_steps(event.time_s)
        self.demand.on_step(event)
        if self.on_step is not None:
            self.on_step(event)

    def _arrive(self, request_id: str, time_s: float, prompt_tokens: int) -> None:
        external = external_id(request_id)
        if external != WARM_UP_ID:
            self.arrivals.add(time_s, float(prompt_tokens))
            self.demand.arrive(request_id, time_s, prompt_tokens)
        entry = self._responses.setdefault(response_id(external), _Response())
        entry.open_ids.add(request_id)
        while len(self._responses) > _KEPT_RESPONSES:
            _, oldest = self._responses.popitem(last=False)
            for open_id in oldest.open_ids:
                self.books.settle(open_id, time_s)

    def _settle(self, request_id: str, now_s: float) -> _Response | None:
        """Settle one engine request; None if it was settled before or is not known."""
        entry = self._responses.get(response_id(external_id(request_id)))
        if entry is None or request_id not in entry.open_ids:
            return None
        entry.open_ids.discard(request_id)
        if external_id(request_id) == WARM_UP_ID:
            self.books.write_off(request_id, now_s)
        else:
            entry.settled.append(self.books.settle(request_id, now_s))
        return entry

    # ---- meter

    def close_window(self) -> None:
        """Read the meter and book the window since the last reading."""
        self.drain()
        self._read()

    def _refresh(self) -> None:
        """Read the meter unless the last reading is fresher than it can resolve."""
        if time.monotonic() - self.windows.last_close_s >= self.windows.min_window_s:
            self._read()

    def _read(self) -> None:
        window = self.windows.next()
        for kind, joules in window.late_joules.items():
            self.books.book_late(kind, joules)
        self.books.close_window(
            window.end_s, window.joules, self._idle_watts, coverage_ratio=window.coverage_ratio
        )

    def set_idle_watts(self, kind: str, watts: float) -> None:
        """Tell the books what a kind of device draws when the replica does nothing."""
        self._idle_watts = {**self._idle_watts, kind: watts}

    # ---- responses

    def finish(self, request_id: str) -> RequestEnergy:
        """The energy of an engine request that has been answered (by its external id), for the
        metrics: what its response was given since the last call."""
        self.drain()
        entry = self._responses.get(response_id(request_id))
        if entry is None:
            return RequestEnergy.total([])
        mine = [open_id for open_id in entry.open_ids if external_id(open_id) == request_id]
        if len(entry.settled) == entry.reported and len(mine) == 1:
            self._refresh()
            self._settle(mine[0], time.monotonic())
        return entry.unreported()

    def response_energy(self, response: str) -> RequestEnergy:
        """The energy of the response with this OpenAI `id`; settles what is still open."""
        self.drain()
        entry = self._responses.get(response)
        if entry is None:
            return RequestEnergy.total([])
        if entry.open_ids:
            self._refresh()
            for open_id in sorted(entry.open_ids):
                self._settle(open_id, time.monotonic())
        return RequestEnergy.total(entry.settled)

    def energy_object(self, response: str) -> dict[str, Any]:
        """The `energy` object of the API (DESIGN §5) for a response."""
        return to_api(self.response_energy(response), self.windows, self.books.weigher.method)

    def totals(self) -> dict[str, float | None]:
        """The books in joules, all kinds of devices summed; None where nothing is metered."""
        books = self.books
        by_kind = {
            "meter": books.metered,
            "attributed": books.settled,
            "open": books.open_joules(),
            "idle": books.idle,
            "unattributed": books.unattributed,
            "prepaid": books.prepaid,
        }
        return {k: sum(v.values()) if books.metered else None for k, v in by_kind.items()}

    def engine_died(self) -> None:
        """The engine is gone: its running steps end now; open requests settle as they stand."""
        self.drain()
        self.books.drop_steps(time.monotonic())
        self._read()

    @property
    def gpu_ids(self) -> list[str]:
        """UUIDs of the metered GPUs."""
        return [one.id for one in self._meter.devices() if one.kind == DeviceKind.GPU]

    def close(self) -> None:
        """Stop metering and remove the socket."""
        self.receiver.close()
        self._meter.close()


def to_api(energy: RequestEnergy, windows: WindowReader, method: str) -> dict[str, Any]:
    """Return the API's `energy` object.

    Where nothing was metered `joules` is null, the source "unavailable" and the reason is given;
    the reason stands beside joules too when some of the devices cannot be read now.
    `attribution_ratio`: the request's part of the energy of the engine steps it took part in.
    """
    if energy.joules is None:
        reasons = [f"{name}: {why}" for name, why in windows.unavailable.items()]
        return {
            "joules": None,
            "source": Source.UNAVAILABLE.value,
            "reason": "; ".join(reasons) or "no meter reading",
        }
    used = {windows.sources.get(k, Source.UNAVAILABLE.value) for k in energy.joules_by_kind}
    found = {
        "joules": _round(energy.joules),
        "idle_joules": _round(energy.idle_joules),
        "prefill_joules": _round(energy.prefill_joules),
        "decode_joules": _round(energy.decode_joules),
        "devices": {kind: _round(value) for kind, value in energy.joules_by_kind.items()},
        "source": "+".join(sorted(used)) or Source.UNAVAILABLE.value,
        "method": method,
        "attribution_ratio": _round(energy.attribution_ratio),
        "coverage_ratio": _round(energy.coverage_ratio),
    }
    return {**found, "reason": "; ".join(windows.lost.values())} if windows.lost else found


def weigher_for(model: FittedModel | None) -> Weigher:
    """Return the attribution by a trusted model, else by plain tokens."""
    if model is None or not model.trusted:
        return TokenWeigher()
    return ModelWeigher(model.latency, model.power)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
