"""AGFT: a contextual bandit (LinUCB) over clocks, here power limits, rewarded by energy x delay.

Source: Ye et al., "AGFT: An Adaptive GPU Frequency Tuner for Real-Time LLM Inference Optimization",
arXiv 2508.01744, and its code (SusCom-Lab/AGFT): arms are the clocks, the context what vLLM shows
of its load (`src/feature_extractor.py`: a queue, prefill and decode rate, tokens per step, running
requests, cache use), a window's reward 2 (1 - min(2, EDP / EDP0)) with EDP = energy x mean TPOT and
EDP0 the same without a limit (`src/reward_calculator.py`). An arm whose mean reward is at most
-1.2 after 3 tries among the first 60 rounds is given up, and with one below half of the highest all
below it; a window that misses the SLO gives up its arm and those below.

Here: energy is the draw reported for the window; the cache hit rate is not observed, and its use is
the tokens held. Left out: the pruning by spread and the refinement of the clock grid, which only
speed up learning among hundreds of clocks, where here are a few limits.

Made stronger: EDP0 is what the profile says of *this* batch without a limit (AGFT takes ten windows
at the start, which a change of load makes worthless), and the delay is the profile's step at the
batch seen, since a reported TPOT describes the last minute; all replicas, which are alike, share
what they learn (`common`); given-up arms get another chance after `closed_s`; while the
measured latency misses the SLO, full power. Replicas are those of `replicas`, or stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from policies.core.control import Policy
from policies.core.observe import View
from policies.core.types import (
    Knob,
    Load,
    Reason,
    ReplicaObservation,
)
from policies.linucb import Floats, LinUcb, Standardizer
from policies.model.fitted import FittedModel
from policies.model.latency import mean_context_tokens
from policies.peer_memory import Due, Misses, number
from policies.peer_parts import (
    Ask,
    Limit,
    Result,
    Wish,
    WishingPeer,
    full_point,
    known_limits,
    shared,
    stay,
    with_replicas_of,
)

WORST_REWARD, WORST_TRIES, WORST_ROUNDS = -1.2, 3, 60
FEATURES = 6
MOST = 1e12  # a larger feature is an error, and must not spoil what was learned


@dataclass(kw_only=True, slots=True)
class _Learner:
    """What is learned; `limits` are the arms, highest first, full power (None) the first."""

    limits: tuple[Limit, ...]
    bandit: LinUcb
    standardize: Standardizer = field(default_factory=lambda: Standardizer(FEATURES))
    closed_until_s: dict[int, float] = field(default_factory=dict)

    def open_arms(self, now_s: float) -> list[int]:
        """The arms that are not given up; full power never is."""
        arms = range(len(self.limits))
        return [arm for arm in arms if self.closed_until_s.get(arm, -np.inf) <= now_s]

    def close(self, arm: int, until_s: float, *, with_lower: bool) -> None:
        """Give an arm up, except full power."""
        last = len(self.limits) if with_lower else arm + 1
        for one in range(max(arm, 1), last):
            self.closed_until_s[one] = until_s


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """A choice whose reward is not known yet."""

    arm: int
    context: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Agft(WishingPeer):
    """Remembers what it has learned: one object per run. The same observations give the same
    decisions; nothing is drawn at random."""

    NAME: ClassVar[str] = "agft"

    model: FittedModel
    replicas: Policy | None = None
    interval_s: float = 1.0
    closed_s: float = 600.0
    common: bool = True
    _misses: Misses = field(default_factory=Misses, init=False, repr=False, compare=False)
    _due: Due = field(default_factory=Due, init=False, repr=False, compare=False)
    _learners: dict[str, _Learner] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _pending: dict[str, _Pending] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def _answer(self, ask: Ask) -> Result:
        return with_replicas_of(self.NAME, ask, self.replicas, self._wish)

    def _wish(self, ask: Ask, view: View) -> Wish:
        if Knob.POWER_LIMIT not in ask.free:
            return stay(view, Reason.STATIC)
        full = full_point(view.present, ask.bounds)
        if not view.fresh:
            return Wish(point=full, reason=Reason.STALE)
        one = view.fresh[0]
        if not self._due.again(one.replica, view.now_s, self.interval_s):
            return stay(view, Reason.NO_BETTER_POINT)
        learner = self._learner(one.replica, ask)
        pending = self._pending.pop(one.replica, None)
        if view.load is None or not number(one.num_running):
            return stay(view, Reason.MODEL_UNTRUSTED if view.traffic else Reason.NO_TRAFFIC)
        load = shared(view.load, len(view.fresh))
        if pending is not None:
            self._learn(learner, pending, one, load, ask)
        if self._misses.late(view.fresh, view.now_s, ask.settings.slo):
            if pending is not None:
                learner.close(pending.arm, view.now_s + self.closed_s, with_lower=True)
            return Wish(point=full, reason=Reason.SLO_AT_RISK)
        context = learner.standardize(_features(one, load))
        arm = learner.bandit.choose(context, learner.open_arms(view.now_s))
        self._pending[one.replica] = _Pending(arm=arm, context=context)
        point = full_point(view.present, ask.bounds, learner.limits[arm])
        return Wish(point=point, reason=Reason.CHEAPEST_FEASIBLE)

    def _learner(self, replica: str, ask: Ask) -> _Learner:
        name = "" if self.common else replica
        limits = known_limits(self.model, ask.bounds)
        known = self._learners.get(name)
        if known is None or known.limits != limits:
            bandit = LinUcb(arms=len(limits), features=FEATURES + 1)
            known = self._learners[name] = _Learner(limits=limits, bandit=bandit)
        return known

    def _learn(
        self, learner: _Learner, pending: _Pending, one: ReplicaObservation, load: Load, ask: Ask
    ) -> None:
        if one.draw_watts is None or not np.isfinite(one.draw_watts):
            return
        now_s, bandit, arm = ask.observation.now_s, learner.bandit, pending.arm
        reward = self.reward(one, load, learner.limits[arm], ask.bounds.max_num_seqs)
        bandit.learn(arm, pending.context, reward)
        tries = int(bandit.counts[arm])
        judged = bandit.rounds <= WORST_ROUNDS and tries >= WORST_TRIES
        if judged and bandit.rewards[arm] / tries <= WORST_REWARD:
            low = (learner.limits[arm] or np.inf) < 0.5 * max(ask.bounds.power_limits_watts)
            learner.close(arm, now_s + self.closed_s, with_lower=low)

    def reward(self, one: ReplicaObservation, load: Load, limit: Limit, max_num_seqs: int) -> float:
        """2 (1 - min(2, EDP / EDP0)) of the batch that runs now, -2..2."""
        batch = min(max(number(one.num_running), 1.0), max_num_seqs)
        slow_s = float(self.model.latency_under(limit).curve(load).mean(batch))
        quick_s = float(self.model.latency.curve(load).mean(batch))
        full_watts = float(self.model.draw_by_batch(load, max_num_seqs, None)[round(batch)])
        ratio = number(one.draw_watts) * slow_s / (full_watts * quick_s)
        return 2.0 * (1.0 - min(2.0, ratio))


def _features(one: ReplicaObservation, load: Load) -> list[float]:
    """What AGFT looks at: a queue, prefill and decode rate, tokens per step, running, KV tokens."""
    running, rate = number(one.num_running), number(one.arrival_rate_per_s)
    values = [
        1.0 if number(one.num_waiting) > 0.0 else 0.0,
        rate * load.prompt_tokens,
        rate * load.output_tokens,
        running * (1.0 + load.prompt_tokens / load.output_tokens),
        running,
        running * mean_context_tokens(load),
    ]
    return [min(value, MOST) for value in values]
