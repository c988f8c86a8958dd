"""How far the fitted model is from the engine's own steps, window by window."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from policies.core.errors import OutOfRange
from policies.model.attribution import share_pairs
from policies.model.fitted import FittedModel
from policies.model.latency import LatencyModel
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

    def __init__(self, model: FittedModel) -> None:
        self._model = model
        self._limit_watts: float | None = None
        self._latency: LatencyModel | None = model.latency
        # Start, modelled seconds (None: not known) and joules.
        self._running: deque[tuple[float, float | None, float]] = deque()
        self._last_end_s = 0.0
        self._measured_s = self._modelled_s = self._modelled_joules = 0.0

    def under(self, limit_watts: float | None) -> None:
        """From now on steps run under this power limit per GPU; None = the device's default. Where
        the model does not know what that does, steps are left out."""
        if limit_watts == self._limit_watts:
            return
        self._limit_watts = limit_watts
        try:
            self._latency = self._model.latency_under(limit_watts)
        except OutOfRange:
            self._latency = None

    def on_step(self, event: StepEvent) -> None:
        """Take one event; steps that overlap are counted from the end of the one before."""
        if event.kind == "b":
            batch = (
                len(event.shares),
                sum(share.context_tokens for share in event.shares),
                sum(share.prefill_tokens for share in event.shares),
                sum(share_pairs(share) for share in event.shares if share.prefill_tokens),
            )
            self._running.append((event.time_s, *self._modelled(batch)))
        elif event.kind == "e" and self._running:
            start_s, modelled_s, modelled_joules = self._running.popleft()
            if modelled_s is None:
                self._last_end_s = event.time_s
                return
            self._measured_s += event.time_s - max(start_s, self._last_end_s)
            self._modelled_s += modelled_s
            self._modelled_joules += modelled_joules
            self._last_end_s = event.time_s
        elif event.kind == "d":
            self._running.clear()

    def _modelled(self, batch: tuple[float, float, float, float]) -> tuple[float | None, float]:
        """Seconds and joules of a step with this batch under the limit: it takes longer, and draws
        what it would draw without, up to the limit. (None, 0): not known."""
        if self._latency is None:
            return None, 0.0
        power, limit = self._model.power, self._limit_watts
        joules, seconds = power.step_joules(*batch), self._latency.step_time_s(*batch)
        if power.is_inert(limit):
            return seconds, joules
        natural_s = self._model.latency.step_time_s(*batch)
        natural_watts = joules / natural_s if natural_s > 0.0 else 0.0
        return seconds, min(natural_watts, power.ceiling_watts(limit)) * seconds

    def take(self) -> StepSums:
        """The sums since the last call."""
        sums = StepSums(
            measured_s=self._measured_s,
            modelled_s=self._modelled_s,
            modelled_joules=self._modelled_joules,
        )
        self._measured_s = self._modelled_s = self._modelled_joules = 0.0
        return sums
