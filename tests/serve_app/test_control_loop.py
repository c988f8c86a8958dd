"""The replica tick: the cap follows the policy, a pin wins, advisory and off act on nothing, and a
failing stage never stops the next."""

import time

import pytest

from policies.core.types import Decision, OperatingPoint, Reason
from policies.core.window import Window
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.batch_cap import BatchCap
from serve_app.control_loop import ControlLoop, Replica
from serve_app.engine.tap import EngineState, FinishedRequest
from serve_app.meters import EnergyMeter
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder, verdict
from serve_app.settings import LiveSettings, parse_energy, parse_live

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
        self.cap, self.seen = cap, []

    def decide(self, observation, state, settings, free):
        self.seen.append((observation, settings, free))
        present = OperatingPoint(num_replicas=1, max_num_active_seqs=64)
        chosen = OperatingPoint(num_replicas=1, max_num_active_seqs=self.cap)
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


async def test_the_cap_follows_the_policy_and_what_is_in_force_is_exported(rig):
    loop, replica, engine, metrics, published = rig
    await loop.tick()
    await loop.tick()
    assert engine.cap == 12
    assert value(metrics, "jouleserve_max_num_active_seqs") == 12
    assert value(metrics, "jouleserve_requested_max_num_active_seqs") == 12
    assert len(published) == 2


async def test_only_the_cap_is_free_and_the_capacity_bounds_it(rig):
    loop, replica, engine, _, _ = rig
    await loop.tick()
    await loop.tick()
    _, settings, free = replica.policy.seen[-1]
    assert {knob.value for knob in free} == {"max_num_active_seqs"}
    assert settings.bounds.max_num_seqs == 64


async def test_a_pin_wins_over_the_policy_and_bounds_it(rig):
    loop, replica, engine, _, _ = rig
    replica.live = parse_live({"max_num_active_seqs": 5}, "f")
    await loop.tick()
    await loop.tick()
    assert engine.cap == 5
    bounds = replica.policy.seen[-1][1].bounds
    assert (bounds.min_active_seqs, bounds.max_num_seqs) == (5, 5)


@pytest.mark.parametrize("mode", ["advisory", "off"])
async def test_without_acting_the_engine_returns_to_full_capacity(rig, mode):
    loop, replica, engine, _, _ = rig
    await loop.tick()
    assert engine.cap == 12
    replica.live = parse_live({"mode": mode}, "f")
    await loop.tick()
    assert engine.cap == 64


async def test_a_refused_cap_is_counted_and_the_report_still_goes_out(rig):
    loop, _, engine, metrics, published = rig
    engine.fault = RuntimeError("no such method")
    await loop.tick()
    assert value(metrics, "jouleserve_control_errors_total", stage="actuate") == 1
    assert len(published) == 1
    engine.fault = None
    await loop.tick()
    assert engine.cap == 12


async def test_the_energy_metrics_advance_with_the_books(rig):
    loop, replica, _, metrics, _ = rig
    await loop.tick()
    time.sleep(0.05)
    replica.accountant.windows._meter.unavailable["gpu"] = "lost"
    await loop.tick()
    metered = value(metrics, "jouleserve_energy_joules_total", device="cpu", source="estimated")
    idle = value(metrics, "jouleserve_attributed_energy_joules_total", device="cpu", share="idle")
    assert metered == pytest.approx(replica.accountant.books.metered["cpu"])
    assert idle == pytest.approx(metered)  # nothing ran
    assert value(metrics, "jouleserve_meter_available", meter="cpu") == 1.0
    assert value(metrics, "jouleserve_meter_available", meter="gpu") == 0.0


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "outcome", "expected"),
    [
        (0.5, 0.05, "stop", "met"),
        (1.5, 0.05, "stop", "missed_ttft"),
        (0.5, 0.5, "length", "missed_tpot"),
        (1.5, 0.5, "stop", "missed_both"),
        (0.5, None, "stop", "met"),
        (0.1, 0.01, "abort", "failed"),
        (0.1, 0.01, "error", "failed"),
    ],
)
def test_the_verdict_of_a_request(ttft_s, tpot_s, outcome, expected):
    request = FinishedRequest(
        request_id="x",
        outcome=outcome,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=2.0,
        queue_s=0.0,
        prompt_tokens=1,
        output_tokens=2,
        cached_tokens=0,
    )
    assert verdict(request, parse_energy({}, "f").slo.to_slo()) == expected
