"""Who is sent away when a power budget leaves too little: later, said plainly, instead of a first
token that comes too late for everybody.

Only where `energy.power.over_budget` is `refuse`, the limit in force is the most that a budget
leaves, and the model says that one more request would wait for longer than the TTFT target.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.serve.llm.openai_api_models import ErrorResponse

from policies.core.errors import OutOfRange
from policies.core.types import Mode
from policies.model.first_token import Backlog, expected_ttft_s
from serve_app.actuators.power_limit import SAME_WATTS
from serve_app.api_errors import OVER_BUDGET
from serve_app.control_loop import Replica

STATUS = 429
Refusal = Callable[[], str | None]


def refusal(replica: Replica) -> str | None:
    """Why a request that arrives now is not taken, for its sender; None = it is taken. What is not
    known speaks for taking it."""
    settings, most = replica.settings, replica.budget_watts
    if settings.power.over_budget != "refuse" or settings.policy.mode is not Mode.ACTIVE:
        return None
    held = replica.limit.in_force_watts
    if most is None or held is None or held < most - SAME_WATTS:
        return None
    expected_s = _expected_s(replica, held)
    target_s = settings.slo.to_slo().ttft_s
    if expected_s is None or expected_s <= target_s:
        return None
    return (
        f"the power budget leaves {most:g} W per GPU, too little for one more request now: its "
        f"first token would come after {expected_s:.1f} s where {target_s:g} s are promised"
    )


def _expected_s(replica: Replica, limit_watts: float) -> float | None:
    model, demand, cap = replica.model, replica.accountant.demand, replica.cap.in_force
    prompt_tokens = demand.mean_prompt_tokens
    output_tokens = replica.output_tokens.mean(time.monotonic())
    budget_tokens = replica.serving.max_num_batched_tokens
    if model is None or cap is None or not prompt_tokens or not output_tokens or not budget_tokens:
        return None
    try:
        latency = model.latency_under(limit_watts)
    except OutOfRange:
        return None
    backlog = Backlog(
        num_running=replica.engine.num_running,
        num_waiting=replica.engine.num_waiting,
        cap=cap.max_num_active_seqs,
        waiting_prompt_tokens=demand.waiting_prompt_tokens,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        budget_tokens=budget_tokens,
    )
    return expected_ttft_s(latency, backlog)


def error_of(message: str) -> ErrorResponse:
    """The refusal as Ray's LLM server answers errors."""
    return ErrorResponse(error={"message": message, "type": OVER_BUDGET, "code": STATUS})
