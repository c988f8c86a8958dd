"""How long an engine step takes, and the steady state that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from policies.core.types import Load
from policies.model.batch import completed_per_s
from policies.model.curve import Number, StepCurve


@dataclass(frozen=True, kw_only=True, slots=True)
class SteadyState:
    """One replica in its mean-field steady state. `saturated`: held at its cap, a queue grows."""

    step_time_s: float
    num_running: float
    saturated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyModel:
    """Step time t = t0 + a n + b kv + c prefill + q pairs + d max(0, n + prefill - knee), seconds.

    The first four terms are the form used across the field (VoltanaLLM 2509.04827, BiScale
    2602.18755; MAPE < 5 %). n: sequences in the batch; kv: their context tokens, summed; prefill:
    prompt tokens computed; pairs: (computed prompt token, token it attends to) pairs, which a
    prompt of p tokens has p^2/2 of, however it is cut into chunks: attention, which long prompts
    feel. The knee is where a step turns from memory- to compute-bound. All finite, >= 0, t0 > 0;
    d knee <= t0, or a larger batch would complete less.

    Symbols below: per replica L = arrivals/s, tin / tout = prompt / output tokens per request,
    kv = tin + tout/2 = mean context of a running sequence, d = a + b kv = decode seconds that a
    sequence adds to each step, g = d + (c tin + ...)/tout = the same with its own prefill spread
    over its tout steps.
    """

    t0_s: float
    a_s_per_seq: float
    b_s_per_kv_token: float
    c_s_per_prefill_token: float
    q_s_per_attended_pair: float = 0.0
    d_s_per_token_beyond_knee: float = 0.0
    knee_tokens: float = 0.0

    def step_time_s(
        self,
        num_seqs: float,
        kv_tokens: float,
        prefill_tokens: float,
        attended_pairs: float = 0.0,
    ) -> float:
        """Seconds of one step with this batch."""
        return (
            self.t0_s
            + self.a_s_per_seq * num_seqs
            + self.b_s_per_kv_token * kv_tokens
            + self.c_s_per_prefill_token * prefill_tokens
            + self.q_s_per_attended_pair * attended_pairs
            + self.d_s_per_token_beyond_knee
            * max(0.0, num_seqs + prefill_tokens - self.knee_tokens)
        )

    def curve(self, load: Load) -> StepCurve:
        """The mean step over the batch under `load`. A prompt is taken to come on top of a batch at
        the knee: exact above, at most d knee seconds too long below."""
        return StepCurve(
            base=self.t0_s,
            per_seq=self.a_s_per_seq + self.b_s_per_kv_token * mean_context_tokens(load),
            per_prompt=self.prefill_s(load),
            output_tokens=load.output_tokens,
            beyond=self.d_s_per_token_beyond_knee,
            knee=self.knee_tokens,
        )

    def prefill_s(self, load: Load) -> float:
        """Seconds that one prompt adds to the steps that compute it."""
        per_token = self.c_s_per_prefill_token + self.d_s_per_token_beyond_knee
        pairs = attended_pairs(load.prompt_tokens)
        return per_token * load.prompt_tokens + self.q_s_per_attended_pair * pairs

    def capacity_per_s(self, load: Load, cap: float) -> float:
        """Requests/s that a replica completes when held at `cap` running sequences.

        mu = cap / (tout t_cap), and a full batch takes in mu t_cap = cap / tout prompts a step, so
        t_cap = t0 + cap g. Rises with `cap` towards 1 / (tout g).
        """
        return completed_per_s(self.curve(load), cap)

    def steady_state(self, load: Load, cap: float) -> SteadyState:
        """The mean step and batch of a replica under `load`, held at `cap` when that is reached.

        Below the cap, Little's law n = L tout t together with t = t0 + n g gives
        t = t0 / (1 - L tout g); beyond the knee, with t0 - d knee and g + d in their places.
        """
        curve = self.curve(load)
        step_s, num_running = self._fixed_point(load, curve.base, curve.mean_per_seq)
        if curve.beyond and num_running > curve.knee:
            base_s = curve.base - curve.beyond * curve.knee
            step_s, num_running = self._fixed_point(load, base_s, curve.mean_per_seq + curve.beyond)
        if num_running < cap:
            return SteadyState(step_time_s=step_s, num_running=num_running, saturated=False)
        return SteadyState(step_time_s=curve.mean(cap), num_running=cap, saturated=True)

    def _fixed_point(self, load: Load, base_s: float, per_seq_s: float) -> tuple[float, float]:
        rate = load.arrival_rate_per_s * load.output_tokens
        slack = 1.0 - rate * per_seq_s
        step_s = base_s / slack if slack > 0.0 and base_s > 0.0 else math.inf
        return step_s, rate * step_s

    def tpot_s(self, load: Load, num_seqs: float, percentile: float) -> float:
        """Seconds per output token of a request whose batch holds `num_seqs` for its whole life;
        `load` is what one replica admits."""
        return stalled_tpot_s(self.curve(load), load.arrival_rate_per_s, num_seqs, percentile)

    def slowed(self, *, prefill_speed_ratio: float, decode_speed_ratio: float) -> LatencyModel:
        """The same device when prefill and decode run at these speeds (> 0). What lies beyond the
        knee is compute, and slows as prefill does."""
        return LatencyModel(
            t0_s=self.t0_s / decode_speed_ratio,
            a_s_per_seq=self.a_s_per_seq / decode_speed_ratio,
            b_s_per_kv_token=self.b_s_per_kv_token / decode_speed_ratio,
            c_s_per_prefill_token=self.c_s_per_prefill_token / prefill_speed_ratio,
            q_s_per_attended_pair=self.q_s_per_attended_pair / prefill_speed_ratio,
            d_s_per_token_beyond_knee=self.d_s_per_token_beyond_knee / prefill_speed_ratio,
            knee_tokens=self.knee_tokens,
        )


def stalled_tpot_s(
    curve: StepCurve, admitted_per_s: Number, num_seqs: Number, percentile: float
) -> Number:
    """Seconds per output token of a request whose batch holds `num_seqs` for its whole life.

    Its life of tout steps holds a Poisson number of foreign prefills with mean m = L tout t, L what
    its replica admits. At `percentile` that number is m + z sqrt(m), z the normal quantile (not
    below 0), so
        t = t(num_seqs) + (prefill / tout) (m + z sqrt(m)),
    a quadratic in sqrt(t). Rises with the load, with `num_seqs` and with `percentile`. Needs
    L prefill < 1, which holds for any L up to the capacity.
    """
    base_s, prefill_s = curve.decode(num_seqs), curve.per_prompt
    free_share = 1.0 - admitted_per_s * prefill_s
    spread = (
        _normal_quantile(percentile) * prefill_s * (admitted_per_s / curve.output_tokens) ** 0.5
    )
    root: Number = (spread + (spread * spread + 4.0 * free_share * base_s) ** 0.5) / (
        2.0 * free_share
    )
    return root * root


def mean_context_tokens(load: Load) -> float:
    """Tokens that a running sequence attends to, averaged over its life: tin + tout/2."""
    return load.prompt_tokens + load.output_tokens / 2.0


def attended_pairs(prompt_tokens: float, cached_tokens: float = 0.0) -> float:
    """(computed token, token it attends to) pairs of a prompt whose first `cached_tokens` are in
    the cache: (p^2 - cached^2) / 2, the same however it is cut into chunks."""
    return 0.5 * (prompt_tokens * prompt_tokens - cached_tokens * cached_tokens)


@lru_cache(maxsize=64)
def _normal_quantile(percentile: float) -> float:
    return max(NormalDist().inv_cdf(min(max(percentile, 0.5), 1.0 - 1e-9)), 0.0)
