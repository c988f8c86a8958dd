"""The longest prompt whose first token can be in time at all."""

from __future__ import annotations

from policies.core.types import SLO
from policies.model.fitted import FittedModel

MOST_TOKENS = 1 << 24


def first_token_s(model: FittedModel, prompt_tokens: int, budget_tokens: int) -> float:
    """Seconds until the first token of a prompt that an idle replica computes at full power, in
    chunks of the token budget, step by step as the simulator's kernel makes them."""
    done, total_s = 0, 0.0
    while done < prompt_tokens:
        tokens = min(budget_tokens, prompt_tokens - done)
        after = done + tokens
        pairs = 0.5 * (float(after) * after - float(done) * done)
        total_s += model.latency.step_time_s(1.0, float(after), float(tokens), pairs)
        done = after
    return total_s


def attainable_prompt_tokens(model: FittedModel, slo: SLO, budget_tokens: int) -> int:
    """The longest prompt that an idle replica at full power answers within the TTFT target, by
    bisection (a longer prompt takes longer); 0 where not even one token is in time."""
    low, high = 0, 1
    while high < MOST_TOKENS and first_token_s(model, high, budget_tokens) <= slo.ttft_s:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if first_token_s(model, middle, budget_tokens) <= slo.ttft_s:
            low = middle
        else:
            high = middle
    return low
