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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Joules = dict[str, float]  # device kind ("gpu", "cpu", "dram") → joules
_FORGET_AFTER = (
    4096  # ids of settled requests kept, so that a late step cannot reopen their account
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShare:
    """One request's part of one engine step. `context_tokens`: KV tokens it attends over, after
    the step."""

    request_id: str
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestEnergy:
    """What one request was given. `joules` and its parts are None when no meter covered any of its
    work; `idle_joules` is the part of `joules` that the replica would have drawn anyway while it
    worked on the request; prefill + decode = joules. `coverage_ratio`: share of its work that a
    meter saw."""

    joules: float | None
    idle_joules: float | None
    prefill_joules: float | None
    decode_joules: float | None
    joules_by_kind: Mapping[str, float]
    coverage_ratio: float

    @staticmethod
    def total(parts: list[RequestEnergy]) -> RequestEnergy:
        """The sum over the engine requests behind one response; unknown parts stay out of it."""
        known = [part for part in parts if part.joules is not None]
        kinds: Joules = {}
        for part in known:
            _add(kinds, part.joules_by_kind)
        coverage = sum(p.coverage_ratio for p in parts) / len(parts) if parts else 0.0
        return RequestEnergy(
            joules=math.fsum(p.joules or 0.0 for p in known) if known else None,
            idle_joules=math.fsum(p.idle_joules or 0.0 for p in known) if known else None,
            prefill_joules=math.fsum(p.prefill_joules or 0.0 for p in known) if known else None,
            decode_joules=math.fsum(p.decode_joules or 0.0 for p in known) if known else None,
            joules_by_kind=kinds,
            coverage_ratio=coverage,
        )


def token_weights(shares: tuple[StepShare, ...]) -> list[tuple[float, float]]:
    """(prefill, decode) weight of each share: its tokens. Used where no model fits."""
    return [(float(s.prefill_tokens), float(s.decode_tokens)) for s in shares]


Weigher = Callable[[tuple[StepShare, ...]], list[tuple[float, float]]]


@dataclass(slots=True)
class _Account:
    """Joules and open-window weights of a running request."""

    prefill: Joules = field(default_factory=dict)
    decode: Joules = field(default_factory=dict)
    idle: Joules = field(default_factory=dict)
    prefill_s: float = 0.0  # engine seconds of the open window, by phase
    decode_s: float = 0.0
    metered_s: float = 0.0
    unmetered_s: float = 0.0


@dataclass(slots=True)
class _Step:
    start_s: float
    shares: tuple[StepShare, ...]
    end_s: float | None = None


class EnergyBooks:
    """Attributes metered energy to requests by engine time x token share.

    Each step's busy time is divided among its requests by `weigher`; a window's active energy is
    divided by those engine seconds. Feed it steps in order (`begin_step`, `end_step`), one
    `close_window` per meter reading, `settle` once per request. Times are monotonic seconds.
    """

    def __init__(self, start_s: float, weigher: Weigher = token_weights) -> None:
        self.weigher = weigher
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
        self._orphan_s = 0.0  # engine seconds of the open window that belong to no open account
        self._rate: Joules = {}  # active joules per engine second, last window with work
        self._idle_rate: Joules = {}  # baseline part of it

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
        weights = self.weigher(step.shares)
        total = math.fsum(p + d for p, d in weights)
        if total <= 0.0:
            self._orphan_s += busy
            return
        for share, (prefill, decode) in zip(step.shares, weights, strict=True):
            part = busy / total
            if share.request_id in self._gone:
                self._orphan_s += (prefill + decode) * part
                continue
            account = self._accounts.setdefault(share.request_id, _Account())
            account.prefill_s += prefill * part
            account.decode_s += decode * part

    # ---- windows

    def close_window(
        self, now_s: float, joules: Mapping[str, float | None], idle_watts: Mapping[str, float]
    ) -> None:
        """Book one meter reading: `joules` by kind since the last one (None = not metered in this
        window), `idle_watts` the known baseline by kind (0 when absent)."""
        if self._steps and self._steps[0].start_s < now_s:
            self._credit(self._steps[0], now_s)
        duration = max(0.0, now_s - self._window_start_s)
        busy = min(self._window_busy_s, duration)
        known = {kind: value for kind, value in joules.items() if value is not None}
        for kind, value in known.items():
            self._book(kind, max(0.0, value), idle_watts.get(kind, 0.0), duration, busy)
        for account in self._accounts.values():
            seconds = account.prefill_s + account.decode_s
            if known:
                account.metered_s += seconds
            else:
                account.unmetered_s += seconds
            account.prefill_s = account.decode_s = 0.0
        self._window_start_s = now_s
        self._window_busy_s = self._orphan_s = 0.0

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
        seconds = self._orphan_s + math.fsum(
            a.prefill_s + a.decode_s for a in self._accounts.values()
        )
        if busy > 0.0:
            self._rate[kind] = (total - idle) / busy
            self._idle_rate[kind] = min(idle_watts, self._rate[kind])
        if active <= 0.0:
            return
        if seconds <= 0.0:
            # The window's work belongs to requests that have left and are paid.
            self.unattributed[kind] = self.unattributed.get(kind, 0.0) + active
            return
        per_s = active / seconds
        baseline_per_s = min(per_s, idle_watts)
        for account in self._accounts.values():
            for phase, phase_s in (
                (account.prefill, account.prefill_s),
                (account.decode, account.decode_s),
            ):
                phase[kind] = phase.get(kind, 0.0) + per_s * phase_s
            account.idle[kind] = account.idle.get(kind, 0.0) + baseline_per_s * (
                account.prefill_s + account.decode_s
            )
        self.unattributed[kind] = self.unattributed.get(kind, 0.0) + per_s * self._orphan_s

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
        _add(total, account.prefill)
        _add(total, account.decode)
        _add(self.settled, total)
        seconds = account.metered_s + account.unmetered_s
        known = bool(total) or (not seconds and bool(self.metered))
        return RequestEnergy(
            joules=math.fsum(total.values()) if known else None,
            idle_joules=math.fsum(account.idle.values()) if known else None,
            prefill_joules=math.fsum(account.prefill.values()) if known else None,
            decode_joules=math.fsum(account.decode.values()) if known else None,
            joules_by_kind=total,
            coverage_ratio=account.metered_s / seconds if seconds else float(known),
        )

    def write_off(self, request_id: str, now_s: float) -> None:
        """Close an account whose work served nobody (a warm-up): its joules become idle."""
        for kind, joules in self.settle(request_id, now_s).joules_by_kind.items():
            self.settled[kind] -= joules
            self.idle[kind] = self.idle.get(kind, 0.0) + joules

    def _pay_open_window(self, account: _Account) -> None:
        seconds = account.prefill_s + account.decode_s
        if not seconds:
            return
        for kind, rate in self._rate.items():
            for phase, phase_s in (
                (account.prefill, account.prefill_s),
                (account.decode, account.decode_s),
            ):
                phase[kind] = phase.get(kind, 0.0) + rate * phase_s
            account.idle[kind] = account.idle.get(kind, 0.0) + self._idle_rate[kind] * seconds
            self.prepaid[kind] = self.prepaid.get(kind, 0.0) + rate * seconds
        if self._rate:
            account.metered_s += seconds
        else:
            account.unmetered_s += seconds
            self._orphan_s += seconds

    # ---- the law

    def open_joules(self) -> Joules:
        """Joules given so far to requests still running, by kind."""
        total: Joules = {}
        for account in self._accounts.values():
            _add(total, account.prefill)
            _add(total, account.decode)
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


def _add(into: Joules, more: Mapping[str, float]) -> None:
    for kind, value in more.items():
        into[kind] = into.get(kind, 0.0) + value
