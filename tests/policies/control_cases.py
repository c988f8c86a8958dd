"""What tests of the tick share: a model, settings, and an observation of a fleet of equals."""

import json
from pathlib import Path

from policies.core.control import (
    tick,
)
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Load,
    Observation,
    OperatingPoint,
    ReplicaObservation,
)
from policies.model.fitted import FittedModel

DATA = json.loads((Path(__file__).parents[1] / "data" / "h100_llama8b.json").read_text())
H100 = FittedModel.from_dict(DATA)
ALL = frozenset(Knob)
REPLICA_TICK = frozenset({Knob.MAX_NUM_ACTIVE_SEQS, Knob.POWER_LIMIT})
FLEET_TICK = frozenset({Knob.NUM_REPLICAS})
CHAT = Load(arrival_rate_per_s=10.0, prompt_tokens=500.0, output_tokens=150.0)
SETTINGS = ControlSettings(
    slo=SLO(ttft_s=1.0, tpot_s=0.03), bounds=Bounds(max_replicas=8, max_num_seqs=256)
)


def point(replicas=1, cap=256, limit=None):
    return OperatingPoint(num_replicas=replicas, max_num_active_seqs=cap, power_limit_watts=limit)


def seen(now=0.0, where=None, rate=10.0, running=None, **kwargs):
    where = where or point()
    values = {
        "time_s": now, "num_running": 1.0, "num_waiting": 0.0, "prompt_tokens": 500.0,
        "output_tokens": 150.0, "arrival_rate_per_s": rate / where.num_replicas,
        "max_num_active_seqs": where.max_num_active_seqs,
        "power_limit_watts": where.power_limit_watts,
    } | kwargs  # fmt: skip
    return Observation(
        now_s=now,
        replicas=tuple(
            ReplicaObservation(replica=str(i), **values) for i in range(where.num_replicas)
        ),
        observed_replicas=where.num_replicas if running is None else running,
        requested_replicas=where.num_replicas,
    )


def settle(where, settings=SETTINGS, free=ALL, start=0.0, ticks=60, **kwargs):
    """The last decision after `ticks` ticks of 5 s under an unchanging load, and every reason."""
    state, reasons = ControlState(), []
    for i in range(ticks):
        decision, state = tick(seen(start + 5.0 * i, where, **kwargs), state, settings, H100, free)
        where = decision.chosen
        reasons.append(decision.reason)
    return decision, reasons
