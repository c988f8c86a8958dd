"""Observations by hand, and the models they are judged by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Observation,
    ReplicaObservation,
)
from policies.model.fitted import FittedModel

H100 = FittedModel.from_dict(
    json.loads((Path(__file__).parents[1] / "data" / "h100_llama8b.json").read_text())
)
LIMITS = (300.0, 400.0, 500.0, 600.0)
SETTINGS = ControlSettings(
    slo=SLO(ttft_s=1.0, tpot_s=0.05),
    bounds=Bounds(max_replicas=8, max_num_seqs=256, power_limits_watts=LIMITS),
    slo_headroom_ratio=0.0,
)
ALL = frozenset(Knob)
FLEET = frozenset({Knob.NUM_REPLICAS})
REPLICA = frozenset({Knob.MAX_NUM_ACTIVE_SEQS, Knob.POWER_LIMIT})
CHAT = {"prompt_tokens": 500.0, "output_tokens": 200.0}


def replica(now_s=0.0, name="0", rate=2.0, **changes):
    """One replica's report; its cap is full, its limit none."""
    values = {
        "replica": name, "time_s": now_s, "num_running": 5.0, "num_waiting": 0.0,
        "arrival_rate_per_s": rate, "max_num_active_seqs": 256, **CHAT,
    }  # fmt: skip
    return ReplicaObservation(**(values | changes))


def fleet(now_s=0.0, replicas=1, rate=2.0, requested=None, **changes):
    """`replicas` equal reports under `rate` requests/s in all."""
    return Observation(
        now_s=now_s,
        replicas=tuple(
            replica(now_s, str(k), rate / max(replicas, 1), **changes) for k in range(replicas)
        ),
        observed_replicas=replicas,
        requested_replicas=replicas if requested is None else requested,
    )


def ask(policy, observation, free, state=None, settings=SETTINGS):
    """The decision alone."""
    return policy.decide(observation, state or ControlState(), settings, free)[0]


def wider(**changes):
    """The settings with other bounds."""
    return replace(SETTINGS, bounds=replace(SETTINGS.bounds, **changes))
