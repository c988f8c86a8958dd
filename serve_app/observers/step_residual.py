"""How far the fitted latency model is from the engine's own steps, window by window."""

from __future__ import annotations

from collections import deque

from policies.model.latency import LatencyModel
from serve_app.engine.step_link import StepEvent


class StepResidual:
    """Sums measured and predicted step time; feed it the step events of one engine."""

    def __init__(self, latency: LatencyModel) -> None:
        self._latency = latency
        self._running: deque[tuple[float, float]] = deque()  # (start, predicted seconds)
        self._last_end_s = 0.0
        self._measured_s = 0.0
        self._predicted_s = 0.0

    def on_step(self, event: StepEvent) -> None:
        """Take one event; steps that overlap are counted from the end of the one before."""
        if event.kind == "b":
            prefill = sum(share.prefill_tokens for share in event.shares)
            context = sum(share.context_tokens for share in event.shares)
            predicted_s = self._latency.step_time_s(len(event.shares), context, prefill)
            self._running.append((event.time_s, predicted_s))
        elif event.kind == "e" and self._running:
            start_s, predicted_s = self._running.popleft()
            self._measured_s += event.time_s - max(start_s, self._last_end_s)
            self._predicted_s += predicted_s
            self._last_end_s = event.time_s
        elif event.kind == "d":
            self._running.clear()

    def take(self) -> float | None:
        """(measured - predicted) / predicted since the last call; None without steps."""
        measured_s, predicted_s = self._measured_s, self._predicted_s
        self._measured_s = self._predicted_s = 0.0
        return (measured_s - predicted_s) / predicted_s if predicted_s > 0.0 else None
