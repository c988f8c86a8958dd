"""The energy books of one replica: every joule of the meter is given to a request, to idle, or
named unattributed; nothing is lost and nothing is counted twice.

Words: a *step* is one engine iteration; a *window* is the time between two meter readings; the
energy of a window that the replica would have drawn without work is *idle*, the rest is *active*.

The law, at every moment and for every kind of device:

    metered = settled + open + idle + unattributed - prepaid

`settled` belongs to requests that have left, `open` to requests still running, `prepaid` is what
requests that left in the middle of a window were given before the meter had shown it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.core.attribution import (
    Joules,
    RequestEnergy,
    StepShare,
    TokenWeigher,
    Weigher,
    add_joules,
)

_FORGET_AFTER = (
    4096  # ids of settled requests kept, so that a late step cannot reopen their account
)


@dataclass(slots=True)
class _Account:
    """Joules and open-window weights of a running request.

    A *unit* is an engine second times the step's relative watts: what a window's energy is divided
    by. `step_units`: units of all steps that it took part in, the others' parts included.
    """

    prefill: Joules = field(default_factory=dict)
    decode: Joules = field(default_factory=dict)
    idle: Joules = field(default_factory=dict)
    steps_joules: float = 0.0  # energy of the steps that it took part in
    prefill_units: float = 0.0  # of the open window, by phase
    decode_units: float = 0.0
    step_units: float = 0.0
    metered_units: float = 0.0
    unmetered_units: float = 0.0

    @property
    def units(self) -> float:
        return self.prefill_units + self.decode_units

    def pay(self, kind: str, per_unit: float, baseline_per_unit: float) -> None:
        """Give it its part of the open window."""
        self.prefill[kind] = self.prefill.get(kind, 0.0) + per_unit * self.prefill_units
        self.decode[kind] = self.decode.get(kind, 0.0) + per_unit * self.decode_units
        self.idle[kind] = self.idle.get(kind, 0.0) + baseline_per_unit * self.units
        self.steps_joules += per_unit * self.step_units

    def end_window(self, coverage_ratio: float) -> None:
        """Start the next window; `coverage_ratio` of this one was metered."""
        self.metered_units += coverage_ratio * self.units
        self.unmetered_units += (1.0 - coverage_ratio) * self.units
        self.prefill_units = self.decode_units = self.step_units = 0.0


@dataclass(slots=True)
class _Step:
    start_s: float
    shares: tuple[StepShare, ...]
    end_s: float | None = None


class EnergyBooks:
    """Attributes metered energy to requests, step by step.

    Each step's busy time is divided among its requests by `weigher`; a window's active energy is
    divided by engine seconds times the step's relative watts. Feed it steps in order (`begin_step`,
    `end_step`), one `close_window` per meter reading, `settle` once per request. Times are
    monotonic seconds.
    """

    def __init__(self, start_s: float, weigher: Weigher | None = None) -> None:
        self.weigher: Weigher = weigher or TokenWeigher()
        self.metered: Joules = {}
        self.idle: Joules = {}
        self.unattributed: Joules = {}
        self.settled: Joules = {}
        self.prepaid: Joules = {}
        self.busy_s = 0.0
        self._accounts: dict[str, _Account] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._steps: deque[_Step] = deque()
        self._accounted_s = start_s  # engine time up to here has been credited
        self._window_start_s = start_s
        self._window_busy_s = 0.0
        self._window_units = 0.0
        self._orphan_units = 0.0  # of the open window, of requests without an open account
        self._rate: Joules = {}  # joules per unit, last window with work
        self._idle_rate: Joules = {}  # baseline part of it
        self._rate_coverage = 0.0

    # ---- steps

    def begin_step(self, start_s: float, shares: tuple[StepShare, ...]) -> None:
        """The engine starts a step. Steps may overlap (async scheduling): they are served in
        order."""
        self._steps.append(_Step(start_s=start_s, shares=shares))

    def end_step(self, end_s: float) -> None:
        """The oldest running step ends."""
        if self._steps:
            self._credit(self._steps.popleft(), end_s)

    def drop_steps(self, now_s: float) -> None:
        """The engine died or steps were lost: what runs now ends here."""
        while self._steps:
            self._credit(self._steps.popleft(), now_s)

    def _credit(self, step: _Step, until_s: float) -> None:
        """Give the engine time since the last credit to the step's requests."""
        begin = max(self._accounted_s, step.start_s)
        busy = until_s - begin
        if busy <= 0.0:
            return
        self._accounted_s = until_s
        self._window_busy_s += busy
        self.busy_s += busy
        weights = self.weigher.weigh(step.shares)
        units = busy * weights.relative_watts
        self._window_units += units
        total = math.fsum(p + d for p, d in weights.shares)
        if total <= 0.0:
            self._orphan_units += units
            return
        for share, (prefill, decode) in zip(step.shares, weights.shares, strict=True):
            part = units / total
            if share.request_id in self._gone:
                self._orphan_units += (prefill + decode) * part
                continue
            account = self._accounts.setdefault(share.request_id, _Account())
            account.prefill_units += prefill * part
            account.decode_units += decode * part
            account.step_units += units

    # ---- windows

    def close_window(
        self,
        now_s: float,
        joules: Mapping[str, float | None],
        idle_watts: Mapping[str, float],
        *,
        coverage_ratio: float = 1.0,
    ) -> None:
        """Book one meter reading: `joules` by kind since the last one (None = not metered in this
        window), `idle_watts` the known baseline by kind (0 when absent), `coverage_ratio` how much
        of the metered devices the reading covers (1 - lost / all)."""
        if self._steps and self._steps[0].start_s < now_s:
            self._credit(self._steps[0], now_s)
        duration = max(0.0, now_s - self._window_start_s)
        busy = min(self._window_busy_s, duration)
        known = {kind: value for kind, value in joules.items() if value is not None}
        for kind in joules.keys() - known.keys():
            # No request is paid in advance from a meter that shows nothing.
            self._rate.pop(kind, None)
            self._idle_rate.pop(kind, None)
        covered = coverage_ratio if known else 0.0
        if busy > 0.0:
            self._rate_coverage = covered
        for kind, value in known.items():
            self._book(kind, max(0.0, value), idle_watts.get(kind, 0.0), duration, busy)
        for account in self._accounts.values():
            account.end_window(covered)
        self._window_start_s = now_s
        self._window_busy_s = self._window_units = self._orphan_units = 0.0

    def book_late(self, kind: str, joules: float) -> None:
        """Book energy of a time that is over, read when a lost meter came back: nobody's."""
        self.metered[kind] = self.metered.get(kind, 0.0) + joules
        self.unattributed[kind] = self.unattributed.get(kind, 0.0) + joules

    def _book(
        self, kind: str, total: float, idle_watts: float, duration: float, busy: float
    ) -> None:
        """Split one kind's window energy into idle, accounts and unattributed."""
        self.metered[kind] = self.metered.get(kind, 0.0) + total
        debt = min(self.prepaid.get(kind, 0.0), total)
        # Requests that left inside a window were paid from this very energy: take it out first.
        self.prepaid[kind] = self.prepaid.get(kind, 0.0) - debt
        left = total - debt
        idle = left if busy <= 0.0 else min(left, idle_watts * (duration - busy))
        self.idle[kind] = self.idle.get(kind, 0.0) + idle
        active = left - idle
        units = self._orphan_units + math.fsum(a.units for a in self._accounts.values())
        baseline = idle_watts * busy / self._window_units if self._window_units > 0.0 else 0.0
        if self._window_units > 0.0:
            self._rate[kind] = (total - idle) / self._window_units
            self._idle_rate[kind] = min(baseline, self._rate[kind])
        if active <= 0.0:
            return
        if units <= 0.0:
            # The window's work belongs to requests that have left and are paid.
            self.unattributed[kind] = self.unattributed.get(kind, 0.0) + active
            return
        per_unit = active / units
        for account in self._accounts.values():
            account.pay(kind, per_unit, min(per_unit, baseline))
        self.unattributed[kind] = self.unattributed.get(kind, 0.0) + per_unit * self._orphan_units

    # ---- requests

    def settle(self, request_id: str, now_s: float) -> RequestEnergy:
        """Close a request's account and return what it used. A part of the window that no reading
        has covered yet is paid at the rate of the last window and taken out of the next one."""
        if self._steps and self._steps[0].start_s < now_s:
            self._credit(self._steps[0], now_s)
        account = self._accounts.pop(request_id, None) or _Account()
        self._gone[request_id] = None
        while len(self._gone) > _FORGET_AFTER:
            self._gone.popitem(last=False)
        self._pay_open_window(account)
        total: Joules = {}
        add_joules(total, account.prefill)
        add_joules(total, account.decode)
        add_joules(self.settled, total)
        units = account.metered_units + account.unmetered_units
        known = bool(total) or (not units and bool(self.metered))
        joules = math.fsum(total.values())
        return RequestEnergy(
            joules=joules if known else None,
            idle_joules=math.fsum(account.idle.values()) if known else None,
            prefill_joules=math.fsum(account.prefill.values()) if known else None,
            decode_joules=math.fsum(account.decode.values()) if known else None,
            joules_by_kind=total,
            coverage_ratio=account.metered_units / units if units else float(known),
            attribution_ratio=(
                min(1.0, joules / account.steps_joules) if account.steps_joules > 0.0 else None
            ),
        )

    def write_off(self, request_id: str, now_s: float) -> None:
        """Close an account whose work served nobody (a warm-up): its joules become idle."""
        given = self.settle(request_id, now_s).joules_by_kind
        add_joules(self.settled, given, -1.0)
        add_joules(self.idle, given)

    def _pay_open_window(self, account: _Account) -> None:
        units = account.units
        if not units:
            return
        for kind, rate in self._rate.items():
            account.pay(kind, rate, self._idle_rate[kind])
            self.prepaid[kind] = self.prepaid.get(kind, 0.0) + rate * units
        if self._rate:
            account.end_window(self._rate_coverage)
        else:
            account.end_window(0.0)
            self._orphan_units += units

    # ---- the law

    def open_joules(self) -> Joules:
        """Joules given so far to requests still running, by kind."""
        total: Joules = {}
        for account in self._accounts.values():
            add_joules(total, account.prefill)
            add_joules(total, account.decode)
        return total

    def residual_joules(self) -> Joules:
        """Metered - (settled + open + idle + unattributed - prepaid), by kind: zero but for
        floating point. Exported live; a value that grows is a defect."""
        opened = self.open_joules()
        return {
            kind: value
            - self.settled.get(kind, 0.0)
            - opened.get(kind, 0.0)
            - self.idle.get(kind, 0.0)
            - self.unattributed.get(kind, 0.0)
            + self.prepaid.get(kind, 0.0)
            for kind, value in self.metered.items()
        }

    @property
    def open_requests(self) -> int:
        return len(self._accounts)
