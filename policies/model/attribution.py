"""Attribution by a fitted model: who caused how much of a step's energy."""

from __future__ import annotations

from policies.core.attribution import StepShare, StepWeights, TokenWeigher
from policies.model.latency import LatencyModel, attended_pairs
from policies.model.power import PowerModel


class ModelWeigher:
    """Divides a step by the Shapley value of the fitted step energy.

    The model says E = E0 + E1 n + E2 kv + E3 prefill + E4 pairs + E5 max(0, tokens - knee). Of this
    game among the n requests of a step the Shapley value (Shapley, 1953) is: the fixed part E0 (the
    weights are streamed once, for everybody) in equal parts, and to each request its own terms. It
    is the only division that is efficient (nothing left over), symmetric (equal work costs the
    same), null-player fair and additive. What lies beyond the knee is divided by tokens: its value
    by Aumann and Shapley (1974), where work is divisible. The meter says how many joules there
    were; the model only divides them.

    A share with prompt tokens belongs to the prefill phase, all others to decode. Where the model
    has no energy for a step, its tokens weigh.
    """

    method = "model_weighted"

    def __init__(self, latency: LatencyModel, power: PowerModel) -> None:
        self._latency = latency
        self._power = power
        self._tokens = TokenWeigher()

    def weigh(self, shares: tuple[StepShare, ...]) -> StepWeights:
        """Return modelled joules per share; `relative_watts` are the step's modelled watts."""
        model = self._power
        working = [s for s in shares if s.prefill_tokens or s.decode_tokens]
        if not working:
            return self._tokens.weigh(shares)
        prefill_tokens = float(sum(share.prefill_tokens for share in working))
        kv_tokens = float(sum(share.context_tokens for share in working))
        pairs = [share_pairs(share) for share in working]
        total = model.step_joules(len(working), kv_tokens, prefill_tokens, sum(pairs))
        if total <= 0.0:
            return self._tokens.weigh(shares)
        fixed = model.e0_joules_per_step / len(working) + model.e1_joules_per_seq
        tokens = len(working) + prefill_tokens
        over = max(0.0, tokens - model.knee_tokens)
        per_token = model.e5_joules_per_token_beyond_knee * over / tokens
        weights = []
        for share in shares:
            if not (share.prefill_tokens or share.decode_tokens):
                weights.append((0.0, 0.0))
                continue
            joules = (
                fixed
                + model.e2_joules_per_kv_token * share.context_tokens
                + model.e3_joules_per_prefill_token * share.prefill_tokens
                + model.e4_joules_per_attended_pair * share_pairs(share)
                + per_token * (1 + share.prefill_tokens)
            )
            weights.append((joules, 0.0) if share.prefill_tokens else (0.0, joules))
        seconds = self._latency.step_time_s(len(working), kv_tokens, prefill_tokens, sum(pairs))
        return StepWeights(shares=weights, relative_watts=total / seconds)


def share_pairs(share: StepShare) -> float:
    """The attended pairs of the prompt tokens that a request computes in a step."""
    return attended_pairs(share.context_tokens, share.context_tokens - share.prefill_tokens)
