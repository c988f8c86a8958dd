"""Decisions of the joint policy on reports that move, each recorded as its edge records it."""

from __future__ import annotations

from policies.core.control import decision_to_dict
from policies.core.lengths import bins_of
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Observation,
    ReplicaObservation,
)
from policies.model.online import Correction, fingerprint
from serve_app.deciders import Serving, load_profile, policy_for
from serve_app.decisions.record import Record
from serve_app.settings import EnergySettings

MODEL = load_profile("llama-3.1-8b-instruct@h100")
PROFILES = {fingerprint(MODEL): MODEL.to_dict()}
LIMITS = (200.0, 300.0, 400.0, 500.0, 600.0)
FLEET = (Knob.NUM_REPLICAS,)
REPLICA = (Knob.MAX_NUM_ACTIVE_SEQS, Knob.PACK_SEQS, Knob.POWER_LIMIT)
SETTINGS = ControlSettings(
    slo=SLO(ttft_s=1.0, tpot_s=0.1),
    bounds=Bounds(max_replicas=8, max_num_seqs=256, power_limits_watts=LIMITS),
)
SERVING = Serving(packed=True, max_num_batched_tokens=8192)
CORRECTION = Correction(step_time_ratio=1.07, energy_ratio=0.96)
ENERGY = EnergySettings()


def seen(now_s, rate, *, replicas=1, late=0.0):
    one = [
        ReplicaObservation(
            replica=f"r{number}",
            time_s=now_s,
            num_running=4.0,
            num_waiting=0.0,
            arrival_rate_per_s=rate / replicas,
            recent_rate_per_s=rate / replicas,
            prompt_tokens=1125.0,
            output_tokens=166.0,
            max_num_active_seqs=256,
            power_limit_watts=None,
            waiting_prompt_tokens=100.0 * rate,
            num_judged=100.0 + now_s,
            num_late=late,
            num_slow=0.0,
            prompt_bins=bins_of([300, 600, 1200, 2400]),
            output_bins=bins_of([50, 150, 300]),
        )
        for number in range(replicas)
    ]
    return Observation(
        now_s=now_s, replicas=tuple(one), observed_replicas=replicas,
        requested_replicas=replicas, pool_replicas=replicas,
    )  # fmt: skip


def records(observations, free=REPLICA, *, model=MODEL, correction=CORRECTION, settings=SETTINGS):
    """One record per observation; the state goes from each to the next."""
    policy = policy_for(ENERGY, model, correction=correction, serving=SERVING)
    state, found = ControlState(), []
    for number, observation in enumerate(observations):
        decision, after = policy.decide(observation, state, settings, frozenset(free))
        found.append(
            Record(
                id=f"d{number}",
                time_utc_s=1.8e9 + observation.now_s,
                deployment="EnergyLLMServer:m",
                replica=None if free == FLEET else "r0",
                policy=ENERGY.policy,
                profile=fingerprint(model) if model is not None else None,
                correction=correction,
                serving=SERVING,
                observation=observation,
                state=state,
                settings=settings,
                free=free,
                decision=decision_to_dict(decision),
            )
        )
        state = after
    return found
