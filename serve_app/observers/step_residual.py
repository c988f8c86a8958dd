"""How far the fitted model is from the engine's own steps, window by window."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from policies.model.attribution import share_pairs
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel
from serve_app.engine.step_link import StepEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSums:
    """The steps that ended in a window: measured and modelled seconds, modelled joules, summed."""

    measured_s: float = 0.0
    modelled_s: float = 0.0
    modelled_joules: float = 0.0

    @property
    def residual_ratio(self) -> float | None:
        """(measured - modelled) / modelled seconds; None without steps."""
        if self.modelled_s <= 0.0:
            return None
        return (self.measured_s - self.modelled_s) / self.modelled_s

    def plus(self, more: StepSums) -> StepSums:
        """Both windows together."""
        return StepSums(
            measured_s=self.measured_s + more.measured_s,
            modelled_s=self.modelled_s + more.modelled_s,
            modelled_joules=self.modelled_joules + more.modelled_joules,
        )


class StepResidual:
    """Sums measured and modelled steps; feed it the step events of one engine."""

    def __init__(self, latency: LatencyModel, power: PowerModel) -> None:
        self._latency = latency
        self._power = power
        self._running: deque[tuple[float, float, float]] = deque()  # start, modelled s and J
        self._last_end_s = 0.0
        self._measured_s = self._modelled_s = self._modelled_joules = 0.0

    def on_step(self, event: StepEvent) -> None:
        """Take one event; steps that overlap are counted from the end of the one before."""
        if event.kind == "b":
            batch = (
                len(event.shares),
                sum(share.context_tokens for share in event.shares),
                sum(share.prefill_tokens for share in event.shares),
                sum(share_pairs(share) for share in event.shares if share.prefill_tokens),
            )
            modelled_s = self._latency.step_time_s(*batch)
            self._running.append((event.time_s, modelled_s, self._power.step_joules(*batch)))
        elif event.kind == "e" and self._running:
            start_s, modelled_s, modelled_joules = self._running.popleft()
            self._measured_s += event.time_s - max(start_s, self._last_end_s)
            self._modelled_s += modelled_s
            self._modelled_joules += modelled_joules
            self._last_end_s = event.time_s
        elif event.kind == "d":
            self._running.clear()

    def take(self) -> StepSums:
        """The sums since the last call."""
        sums = StepSums(
            measured_s=self._measured_s,
            modelled_s=self._modelled_s,
            modelled_joules=self._modelled_joules,
        )
        self._measured_s = self._modelled_s = self._modelled_joules = 0.0
        return sums
