"""What a replica tells the request routers, about once a second."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from serve_app.control_loop import Replica
from serve_app.packing import Told

_RENEW_S = 5.0  # a report is renewed this often even where nothing has changed
_BUDGET_TOKENS = 2048  # per step, where the engine has not told


class RouterHints:
    """One replica's reports to the routers. Ray sends every report that differs from the last one
    to all of them: an idle replica repeats itself."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._last: Told | None = None

    def stats(self, now_s: float, rank: int | None) -> dict[str, Any]:
        """The report as plain data; `now_s` is the wall clock."""
        replica = self._replica
        replica.accountant.drain()
        told = self._told(now_s, rank)
        last = self._last
        if (
            last is not None
            and now_s - last.time_s < _RENEW_S
            and replace(told, time_s=last.time_s) == last
        ):
            return asdict(last)
        self._last = told
        return asdict(told)

    def _told(self, now_s: float, rank: int | None) -> Told:
        replica, demand = self._replica, self._replica.accountant.demand
        hint, engine = replica.hint, replica.engine
        mean = demand.mean_prompt_tokens
        return Told(
            time_s=now_s,
            num_outstanding=float(demand.num_open),
            waiting_tokens=float(demand.waiting_prompt_tokens),
            num_arrived=demand.arrived,
            rank=rank,
            pack_seqs=hint.pack_seqs if hint is not None else None,
            pack_tokens=hint.pack_tokens if hint is not None else None,
            prompt_tokens=mean,
            prompt_tokens_per_s=self._prompt_tokens_per_s(engine.num_running),
        )

    def _prompt_tokens_per_s(self, num_running: int) -> float | None:
        """Prompt tokens that steps full to the token budget compute beside the present batch: what
        waits shrinks no faster."""
        model = self._replica.model
        if model is None:
            return None
        budget = self._replica.serving.max_num_batched_tokens or _BUDGET_TOKENS
        prompt = max(budget - num_running, 1)
        return prompt / model.latency.step_time_s(float(num_running), 0.0, float(prompt))
