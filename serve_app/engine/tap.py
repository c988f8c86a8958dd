"""What the engine says about itself in this process: running and waiting requests, TTFT, TPOT, ITL.

`EngineTap` is a vLLM stat logger (entry point `vllm.stat_logger_plugins`): vLLM makes one per
engine in the process that serves requests, under Ray in both request paths and in a plain vLLM
server, so latency is measured in one place whatever stands in front. vLLM calls these stats "not
stable interfaces": every attribute is read with a default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from policies.core.window import Window

HORIZON_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRequest:
    """One request that the engine has answered. `tpot_s` is None for answers of one token."""

    request_id: str
    outcome: str  # vLLM's finish reason: stop, length, abort, error
    ttft_s: float
    tpot_s: float | None
    e2e_s: float
    queue_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class EngineState:
    """The latest facts of one engine; windows are at most `HORIZON_S` long."""

    num_running: int = 0
    num_waiting: int = 0
    kv_usage_ratio: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    last_record_s: float | None = None
    max_num_batched_tokens: int | None = None  # the engine's token budget per step
    ttft_s: Window = field(default_factory=lambda: Window(HORIZON_S))
    tpot_s: Window = field(default_factory=lambda: Window(HORIZON_S))
    listeners: list[Callable[[FinishedRequest], None]] = field(default_factory=list)
    first_token_listeners: list[Callable[[float], None]] = field(default_factory=list)
    itl_listeners: list[Callable[[Sequence[float]], None]] = field(default_factory=list)

    def clear_samples(self) -> None:
        """Forget latency samples (after warm-up, which must not count)."""
        self.ttft_s, self.tpot_s = Window(HORIZON_S), Window(HORIZON_S)


STATE = EngineState()


class EngineTap(StatLoggerBase):  # type: ignore[misc]  # vLLM ships no types for it
    """Copies vLLM's per-iteration statistics into `STATE` and tells listeners of finished
    requests."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        del engine_index
        scheduling = getattr(vllm_config, "scheduler_config", None)
        STATE.max_num_batched_tokens = getattr(scheduling, "max_num_batched_tokens", None)

    def record(
        self,
        scheduler_stats: Any = None,
        iteration_stats: Any = None,
        *_args: Any,
        **_kwargs: Any,
    ) -> None:
        now_s = time.monotonic()
        STATE.last_record_s = now_s
        if scheduler_stats is not None:
            STATE.num_running = getattr(scheduler_stats, "num_running_reqs", 0)
            STATE.num_waiting = getattr(scheduler_stats, "num_waiting_reqs", 0)
            STATE.kv_usage_ratio = getattr(scheduler_stats, "kv_cache_usage", 0.0)
        if iteration_stats is not None:
            self._record_iteration(iteration_stats, now_s)

    def _record_iteration(self, stats: Any, now_s: float) -> None:
        STATE.generated_tokens += getattr(stats, "num_generation_tokens", 0)
        for ttft_s in getattr(stats, "time_to_first_tokens_iter", ()):
            STATE.ttft_s.add(now_s, ttft_s)
            for first_token in STATE.first_token_listeners:
                first_token(ttft_s)
        gaps_s = getattr(stats, "inter_token_latencies_iter", ())
        if gaps_s:
            for listen_itl in STATE.itl_listeners:
                listen_itl(gaps_s)
        for finished in getattr(stats, "finished_requests", ()):
            request = _finished(finished)
            STATE.prompt_tokens += request.prompt_tokens
            if request.tpot_s is not None:
                STATE.tpot_s.add(now_s, request.tpot_s)
            for listen in STATE.listeners:
                listen(request)

    def log_engine_initialized(self) -> None:
        """Nothing to log: the replica says what it runs."""


def _finished(stats: Any) -> FinishedRequest:
    """VLLM's FinishedRequestStats in our words. TTFT = e2e - decode time (both from arrival)."""
    output_tokens = getattr(stats, "num_generation_tokens", 0)
    e2e_s = getattr(stats, "e2e_latency", 0.0)
    decode_s = getattr(stats, "decode_time", 0.0)
    return FinishedRequest(
        request_id=getattr(stats, "request_id", None) or "",
        outcome=str(getattr(stats, "finish_reason", "unknown")),
        ttft_s=max(0.0, e2e_s - decode_s),
        tpot_s=decode_s / (output_tokens - 1) if output_tokens > 1 else None,
        e2e_s=e2e_s,
        queue_s=getattr(stats, "queued_time", 0.0),
        prompt_tokens=getattr(stats, "num_prompt_tokens", 0),
        output_tokens=output_tokens,
        cached_tokens=getattr(stats, "num_cached_tokens", 0),
    )
