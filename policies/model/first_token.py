"""When the first token of a request that arrives now is to be expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.model.latency import LatencyModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """What a replica has before it. `num_running`, `num_waiting`: requests; `cap`: that may run;
    `waiting_prompt_tokens`: arrived and not computed; `prompt_tokens`, `output_tokens`: of a
    request in the mean; `budget_tokens`: of one step."""

    num_running: float
    num_waiting: float
    cap: int
    waiting_prompt_tokens: float
    prompt_tokens: float
    output_tokens: float
    budget_tokens: int


def expected_ttft_s(latency: LatencyModel, backlog: Backlog) -> float:
    """Seconds until the first token of one more request of mean length, first come first served.

    The prompts before it and its own are computed in steps of the token budget beside the running
    sequences; where the batch is full it waits as well until as many of those before it have ended
    as stand in its way, `cap` of them in `output_tokens` steps. The longer of the two.
    """
    seqs = min(backlog.num_running, float(backlog.cap))
    context = seqs * (backlog.prompt_tokens + 0.5 * backlog.output_tokens)
    tokens = backlog.waiting_prompt_tokens + backlog.prompt_tokens
    steps = max(math.ceil(tokens / max(backlog.budget_tokens, 1)), 1)
    pairs = 0.5 * backlog.prompt_tokens * tokens
    prefill_s = steps * latency.step_time_s(seqs, context, tokens / steps, pairs / steps)
    in_the_way = backlog.num_running + backlog.num_waiting + 1.0 - backlog.cap
    if in_the_way <= 0.0:
        return prefill_s
    step_s = latency.step_time_s(seqs, context, 0.0)
    return max(prefill_s, in_the_way * backlog.output_tokens * step_s / max(backlog.cap, 1))
