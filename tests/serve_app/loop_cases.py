"""A replica's loop on a hand-made engine and policy."""

import time

import pytest

from policies.core.types import Decision, OperatingPoint, Reason
from policies.core.window import Window
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.batch_cap import BatchCap
from serve_app.control_loop import ControlLoop, Replica
from serve_app.engine.tap import EngineState
from serve_app.meters import EnergyMeter
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder
from serve_app.settings import LiveSettings, parse_energy

LABELS = {"application": "llm", "deployment": "d", "replica": "r", "model": "m"}


class Engine:
    """Stands where Ray's engine stands: answers the one utility call as EngineCore does."""

    def __init__(self):
        self._engine_client = self
        self.engine_core = self
        self.cap, self.capacity, self.fault = 64, 64, None

    async def call_utility_async(self, name, cap):
        assert name == "jouleserve_set_max_num_active_seqs"
        if self.fault:
            raise self.fault
        if cap is not None:
            self.cap = min(max(1, cap), self.capacity)
        return self.cap, 3, self.capacity


class Wants:
    """A policy that wants one cap and remembers what it was shown."""

    name = "wants"

    def __init__(self, cap):
        self.cap, self.seen, self.limit_watts = cap, [], None

    def decide(self, observation, state, settings, free):
        self.seen.append((observation, settings, free))
        present = OperatingPoint(num_replicas=1, max_num_active_seqs=64)
        chosen = OperatingPoint(
            num_replicas=1, max_num_active_seqs=self.cap, power_limit_watts=self.limit_watts
        )
        decision = Decision(
            time_s=observation.now_s,
            policy="wants",
            reason=Reason.CHEAPEST_FEASIBLE,
            present=present,
            proposed=chosen,
            chosen=chosen,
        )
        return decision, state


@pytest.fixture
def rig():
    engine, published = Engine(), []
    accountant = EnergyAccountant(EnergyMeter(["estimated"]))
    metrics = MetricSet(LABELS)
    replica = Replica(
        name="r",
        accountant=accountant,
        engine=EngineState(),
        cap=BatchCap(engine),
        recorder=Recorder(metrics),
        policy=Wants(12),
        base=parse_energy({}, "f"),
        live=LiveSettings(),
        output_tokens=Window(30.0),
    )

    async def publish():
        published.append(time.monotonic())

    yield ControlLoop(replica, publish), replica, engine, metrics, published
    accountant.close()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, {**LABELS, **labels})
