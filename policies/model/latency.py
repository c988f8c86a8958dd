"""How long an engine step takes, and the steady state that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from policies.core.types import Load


@dataclass(frozen=True, kw_only=True, slots=True)
class SteadyState:
    """One replica in its mean-field steady state. `saturated`: held at its cap, a queue grows."""

    step_time_s: float
    num_running: float
    saturated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyModel:
    """Step time t = t0 + a n + b kv + c prefill, in seconds; coefficients finite, >= 0, t0 > 0.

    The linear form used across the field (VoltanaLLM 2509.04827, BiScale 2602.18755; MAPE < 5 %).
    n: sequences in the batch; kv: their context tokens, summed; prefill: prompt tokens computed.

    Symbols below: per replica L = arrivals/s, tin / tout = prompt / output tokens per request,
    kv = tin + tout/2 = mean context of a running sequence, d = a + b kv = decode seconds that a
    sequence adds to each step, g = d + c tin/tout = the same with its own prefill spread over its
    tout steps.
    """

    t0_s: float
    a_s_per_seq: float
    b_s_per_kv_token: float
    c_s_per_prefill_token: float

    def step_time_s(self, num_seqs: float, kv_tokens: float, prefill_tokens: float) -> float:
        """Seconds of one step with this batch."""
        return (
            self.t0_s
            + self.a_s_per_seq * num_seqs
            + self.b_s_per_kv_token * kv_tokens
            + self.c_s_per_prefill_token * prefill_tokens
        )

    def decode_s_per_seq(self, load: Load) -> float:
        """d: seconds that one running sequence adds to each step, without any prefill."""
        return self.a_s_per_seq + self.b_s_per_kv_token * mean_context_tokens(load)

    def prefill_s(self, load: Load) -> float:
        """Seconds, c tin, that one prompt adds to the steps that compute it."""
        return self.c_s_per_prefill_token * load.prompt_tokens

    def total_s_per_seq(self, load: Load) -> float:
        """g: seconds that one running sequence adds to each step, its prefill spread over it."""
        return self.decode_s_per_seq(load) + self.prefill_s(load) / load.output_tokens

    def capacity_per_s(self, load: Load, cap: float) -> float:
        """Requests/s that a replica completes when held at `cap` running sequences.

        mu = cap / (tout t_cap), and a full batch takes in mu t_cap = cap / tout prompts a step, so
        t_cap = t0 + cap g. Rises with `cap` towards 1 / (tout g).
        """
        return cap / (load.output_tokens * (self.t0_s + cap * self.total_s_per_seq(load)))

    def steady_state(self, load: Load, cap: float) -> SteadyState:
        """The mean step and batch of a replica under `load`, held at `cap` when that is reached.

        Below the cap, Little's law n = L tout t together with t = t0 + n d + c L tin t gives
        t = t0 / (1 - L (tout d + c tin)).
        """
        g_s = self.total_s_per_seq(load)
        slack = 1.0 - load.arrival_rate_per_s * load.output_tokens * g_s
        step_s = self.t0_s / slack if slack > 0.0 else math.inf
        num_running = load.arrival_rate_per_s * load.output_tokens * step_s
        if num_running < cap:
            return SteadyState(step_time_s=step_s, num_running=num_running, saturated=False)
        return SteadyState(step_time_s=self.t0_s + cap * g_s, num_running=cap, saturated=True)

    def tpot_s(self, load: Load, num_seqs: float, percentile: float) -> float:
        """Seconds per output token of a request whose batch holds `num_seqs` for its whole life.

        Its life of tout steps holds a Poisson number of foreign prefills with mean m = L tout t. At
        `percentile` that number is m + z sqrt(m), z the normal quantile (not below 0), so
            t = t0 + num_seqs d + (c tin / tout) (m + z sqrt(m)),
        a quadratic in sqrt(t). Rises with the load, with `num_seqs` and with `percentile`. Needs
        c L tin < 1, which holds for any L up to `capacity_per_s`.
        """
        base_s = self.t0_s + num_seqs * self.decode_s_per_seq(load)
        prefill_s = self.prefill_s(load)
        free_share = 1.0 - load.arrival_rate_per_s * prefill_s
        spread = (
            _normal_quantile(percentile)
            * prefill_s
            * math.sqrt(load.arrival_rate_per_s / load.output_tokens)
        )
        root = (spread + math.sqrt(spread * spread + 4.0 * free_share * base_s)) / (
            2.0 * free_share
        )
        return root * root

    def slowed(self, *, prefill_speed_ratio: float, decode_speed_ratio: float) -> LatencyModel:
        """The same device when prefill and decode run at these speeds (0 < ratio <= 1)."""
        return LatencyModel(
            t0_s=self.t0_s / decode_speed_ratio,
            a_s_per_seq=self.a_s_per_seq / decode_speed_ratio,
            b_s_per_kv_token=self.b_s_per_kv_token / decode_speed_ratio,
            c_s_per_prefill_token=self.c_s_per_prefill_token / prefill_speed_ratio,
        )


def mean_context_tokens(load: Load) -> float:
    """Tokens that a running sequence attends to, averaged over its life: tin + tout/2."""
    return load.prompt_tokens + load.output_tokens / 2.0


@lru_cache(maxsize=64)
def _normal_quantile(percentile: float) -> float:
    return max(NormalDist().inv_cdf(min(max(percentile, 0.5), 1.0 - 1e-9)), 0.0)
