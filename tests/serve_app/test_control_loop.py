"""The replica tick: the cap follows the policy, a pin wins, advisory and off act on nothing, and a
failing stage never stops the next."""

import time
from dataclasses import replace

import pytest
from small_model import MODEL

from policies.core.attribution import StepShare
from policies.core.lengths import bins_of
from policies.core.types import Decision, OperatingPoint, Reason
from policies.core.window import Window
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.base import Ask, LimitState
from serve_app.actuators.batch_cap import BatchCap
from serve_app.actuators.no_limit import NoLimits
from serve_app.actuators.replica_limit import INERT_TICKS, ReplicaLimit
from serve_app.control_loop import ControlLoop, Replica
from serve_app.deciders import Serving, policy_for
from serve_app.decisions.approval import Approved
from serve_app.engine.step_link import StepEvent
from serve_app.engine.tap import EngineState, FinishedRequest
from serve_app.live_model import LiveModel
from serve_app.meters import EnergyMeter
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder, verdict
from serve_app.replica_hints import RouterHints
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


async def test_the_cap_follows_the_policy_and_what_is_in_force_is_exported(rig):
    loop, replica, engine, metrics, published = rig
    await loop.tick()
    await loop.tick()
    assert engine.cap == 12
    assert value(metrics, "jouleserve_max_num_active_seqs") == 12
    assert value(metrics, "jouleserve_requested_max_num_active_seqs") == 12
    assert len(published) == 2


async def test_its_own_knobs_are_free_and_the_capacity_bounds_the_cap(rig):
    loop, replica, engine, _, _ = rig
    await loop.tick()
    await loop.tick()
    _, settings, free = replica.policy.seen[-1]
    assert {knob.value for knob in free} == {"max_num_active_seqs", "power_limit", "pack_seqs"}
    assert settings.bounds.max_num_seqs == 64


async def test_a_pin_wins_over_the_policy_and_bounds_it(rig):
    loop, replica, engine, _, _ = rig
    replica.live = parse_live({"max_num_active_seqs": 5}, "f")
    await loop.tick()
    await loop.tick()
    assert engine.cap == 5
    bounds = replica.policy.seen[-1][1].bounds
    assert (bounds.min_active_seqs, bounds.max_num_seqs) == (5, 5)


class Limits:
    """An actuator that remembers what it was asked and answers as it is told to."""

    name = "limits"

    def __init__(self):
        self.asked, self.closed = [], 0
        self.state = LimitState(min_watts=200.0, max_watts=700.0, default_watts=700.0)

    def ask(self, ask):
        self.asked.append(ask)
        watts = ask.watts or 700.0
        self.state = replace(
            self.state, held=not ask.nothing, asked_watts=ask.watts, enforced_watts=watts,
            limit_watts=watts,
        )  # fmt: skip
        return self.state

    def close(self):
        self.closed += 1


@pytest.fixture
def limited(rig):
    loop, replica, *_ = rig
    actuator = Limits()
    replica.limit = ReplicaLimit(actuator, (150.0, 300.0, 500.0))
    return loop, replica, actuator


async def test_the_limit_follows_the_policy_once_it_is_known_what_may_be_set(limited, rig):
    loop, replica, actuator = limited
    replica.policy.limit_watts = 300.0
    await loop.tick()
    assert replica.policy.seen[-1][1].bounds.power_limits_watts == ()
    await loop.tick()
    await loop.tick()
    observation, settings, _ = replica.policy.seen[-1]
    assert settings.bounds.power_limits_watts == (300.0, 500.0)  # 150 W: not on this board
    assert observation.replicas[0].power_limit_watts == 300.0
    assert actuator.asked[-1] == Ask(watts=300.0)
    metrics = rig[3]
    value = metrics.registry.get_sample_value
    assert value("jouleserve_requested_power_limit_watts", LABELS) == 300.0
    assert value("jouleserve_power_limit_watts", LABELS) == 300.0
    assert value("jouleserve_power_limit_held", LABELS) == 1.0


@pytest.mark.parametrize("mode", ["advisory", "off"])
async def test_without_acting_the_limit_is_given_back(limited, mode):
    loop, replica, actuator = limited
    replica.policy.limit_watts = 300.0
    await loop.tick()
    assert actuator.asked[-1] == Ask(watts=300.0)
    replica.live = parse_live({"mode": mode}, "f")
    await loop.tick()
    assert actuator.asked[-1] == Ask()
    wanted = 300.0 if mode == "advisory" else None
    assert replica.limit.state.asked_watts == wanted


async def test_in_approve_mode_only_what_was_approved_is_set(limited):
    loop, replica, actuator = limited
    replica.policy.limit_watts = 300.0
    replica.live = parse_live({"mode": "approve"}, "f")
    await loop.tick()
    assert actuator.asked[-1] == Ask()
    assert replica.cap.in_force.max_num_active_seqs == 64
    assert replica.hint is None
    point = OperatingPoint(num_replicas=1, max_num_active_seqs=20, power_limit_watts=500.0)
    replica.approved = Approved(point=point)
    replica.policy.cap = 7  # what is wanted since is not what was approved
    await loop.tick()
    assert actuator.asked[-1] == Ask(watts=500.0)
    assert replica.cap.in_force.max_num_active_seqs == 20
    assert replica.hint == point
    replica.live = parse_live({"mode": "advisory"}, "f")
    await loop.tick()
    assert actuator.asked[-1] == Ask()
    assert replica.cap.in_force.max_num_active_seqs == 64


async def test_a_power_budget_bounds_the_policy_and_holds_where_it_asks_for_all(limited):
    loop, replica, actuator = limited
    actuator.state = replace(actuator.state, max_watts=450.0, capped=True)
    await loop.tick()
    await loop.tick()
    bounds = replica.policy.seen[-1][1].bounds
    assert (bounds.power_limits_watts, bounds.max_limit_watts) == ((300.0,), 450.0)
    assert actuator.asked[-1] == Ask(watts=450.0)  # the policy asked for the device's default


@pytest.mark.parametrize(("power_capped", "clock_mhz"), [(False, 600), (True, None), (None, None)])
async def test_a_limit_that_does_nothing_gives_way_to_the_clock_that_it_was_to_give(
    power_capped, clock_mhz
):
    actuator = Limits()
    actuator.state = replace(actuator.state, max_clock_mhz=2000, power_capped=power_capped)
    limit = ReplicaLimit(actuator, (300.0,), lambda watts: watts / 1000.0)
    for _ in range(INERT_TICKS):
        await limit.bring(300.0, active=True)
        assert actuator.asked[-1] == Ask(watts=300.0)
        assert limit.judge(250.0) is True
    await limit.bring(300.0, active=True)
    assert actuator.asked[-1] == Ask(watts=300.0, clock_mhz=clock_mhz)
    await limit.bring(300.0, active=False)
    assert actuator.asked[-1] == Ask()
    await limit.bring(300.0, active=True)
    assert limit.judge(295.0) is False  # the limit does something again
    await limit.bring(300.0, active=True)
    assert actuator.asked[-1] == Ask(watts=300.0)


async def test_each_replica_keeps_its_share_of_the_fleets_power_budget(limited):
    loop, replica, actuator = limited
    power = {"actuator": "agent", "fleet_budget_watts": 1800.0}
    replica.base = parse_energy({"power": power}, "f")

    async def share(pool):
        replica.pool_replicas = pool
        await loop.tick()
        await loop.tick()
        return replica.policy.seen[-1][1].bounds.max_limit_watts

    assert await share(None) == 300.0  # the lowest limit, until it is known who shares
    assert await share(4) == 450.0
    assert await share(1) == 1800.0
    told = replica.control_settings().bounds  # what the fleet is told
    assert (told.max_limit_watts, told.fleet_budget_watts) == (None, 1800.0)
    replica.live = parse_live({"fleet_budget_watts": 2000}, "f", replica.base)
    assert await share(4) == 500.0
    assert replica.control_settings().bounds.fleet_budget_watts == 2000.0
    replica.live = LiveSettings()
    assert await share(4) == 450.0


async def test_a_budget_without_a_profile_of_limits_holds_and_is_not_planned_with(rig):
    loop, replica, *_ = rig
    actuator = Limits()
    actuator.state = replace(actuator.state, max_watts=450.0, capped=True)
    replica.limit = ReplicaLimit(actuator)
    await loop.tick()
    await loop.tick()
    assert replica.policy.seen[-1][1].bounds.limits == (None,)
    assert actuator.asked[-1] == Ask(watts=450.0)


async def test_limits_that_nobody_can_set_though_somebody_shall_are_told(rig, caplog):
    loop, replica, _, metrics, _ = rig
    replica.limit = ReplicaLimit(NoLimits("no GPU of this replica is metered"))
    await loop.tick()
    assert "unavailable: no GPU of this replica is metered" in caplog.text
    assert replica.limit.row()["actuator"] == "unavailable"
    value = metrics.registry.get_sample_value
    assert value("jouleserve_power_limit_available", LABELS) == 0.0


async def test_limits_that_cannot_be_set_are_not_offered_and_the_tick_goes_on(limited, rig):
    loop, replica, actuator = limited
    actuator.state = replace(actuator.state, reason="the GPU has fallen off the bus")
    await loop.tick()
    await loop.tick()
    assert replica.policy.seen[-1][1].bounds.power_limits_watts == ()
    assert rig[2].cap == 12
    value = rig[3].registry.get_sample_value
    assert value("jouleserve_power_limit_available", LABELS) == 0.0
    assert replica.limit.row()["reason"] == "the GPU has fallen off the bus"


async def test_after_the_end_nothing_is_set(limited):
    loop, replica, actuator = limited
    replica.limit.close()
    replica.policy.limit_watts = 300.0
    await loop.tick()
    assert (actuator.asked, actuator.closed) == ([], 1)


async def test_where_nobody_sets_limits_there_are_no_series_about_it(rig):
    loop, _, _, metrics, _ = rig
    await loop.tick()
    value = metrics.registry.get_sample_value
    assert value("jouleserve_power_limit_available", LABELS) is None


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


# ---- what is reported, and what the router is told


class Packs(Wants):
    """Wants the router to give so many requests, and remembers what it learned."""

    def decide(self, observation, state, settings, free):
        decision, state = super().decide(observation, state, settings, free)
        chosen = replace(decision.chosen, pack_seqs=7, pack_tokens=900)
        memory = replace(state.memory, margin=-0.2, pace_margin=0.1)
        return replace(decision, chosen=chosen), replace(state, memory=memory)


def serve_one(replica, ttft_s, tpot_s=0.01, prompt_tokens=30, output_tokens=9):
    """A request through the engine's facts, as `serve_app.server` hears of them."""
    demand, now_s = replica.accountant.demand, time.monotonic()
    demand.arrive("r", now_s - ttft_s, prompt_tokens)
    share = StepShare(
        request_id="r",
        prefill_tokens=prompt_tokens,
        decode_tokens=0,
        context_tokens=prompt_tokens,
    )
    demand.on_step(StepEvent(kind="b", time_s=now_s, shares=(share,)))
    demand.on_step(StepEvent(kind="e", time_s=now_s, finished=("r",)))
    demand.ended(
        FinishedRequest(
            request_id="r",
            outcome="stop",
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=9.0,
            queue_s=0.0,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=0,
        )
    )


async def test_a_report_holds_what_the_joint_policy_decides_on(rig):
    loop, replica, *_ = rig
    replica.policy = Packs(12)
    serve_one(replica, ttft_s=0.2)
    serve_one(replica, ttft_s=1.5)
    serve_one(replica, ttft_s=0.2, tpot_s=0.2)
    replica.accountant.demand.arrive("waits", time.monotonic(), 40)
    await loop.tick()
    seen = replica.observe(time.monotonic())
    assert seen.prompt_bins == bins_of([30, 30, 30, 40])
    assert seen.output_bins == bins_of([9, 9, 9])
    assert seen.waiting_prompt_tokens == 40
    assert (seen.num_judged, seen.num_late, seen.num_slow) == (3, 1, 1)
    assert seen.recent_rate_per_s == pytest.approx(4 / 1.5, rel=0.1)  # since the first, 1.5 s ago
    assert (seen.margin, seen.pace_margin) == (-0.2, 0.1)
    assert (seen.pack_seqs, seen.pack_tokens) == (7, 900)


async def test_the_slo_in_force_judges(rig):
    loop, replica, *_ = rig
    replica.live = parse_live({"slo": {"ttft_ms": 100}}, "f")
    await loop.tick()
    serve_one(replica, ttft_s=0.2)
    assert replica.observe(time.monotonic()).num_late == 1


async def test_prompts_that_no_replica_could_answer_in_time_are_not_judged(rig):
    loop, replica, *_ = rig
    replica.live_model = LiveModel(MODEL, replica.base.model_correction)
    replica.policy = policy_for(replica.base, MODEL)
    replica.serving = Serving(max_num_batched_tokens=512)
    await loop.tick()
    longest = replica.accountant.demand.attainable_tokens
    # 512 tokens a step: t0 + a + 512 c = 0.277 s; three such steps, and what fits into the rest.
    assert longest == pytest.approx(3 * 512 + (1.0 - 3 * 0.277 - 0.021) / 0.0005, abs=1)
    serve_one(replica, ttft_s=3.0, prompt_tokens=longest)
    serve_one(replica, ttft_s=3.0, prompt_tokens=longest + 1)
    seen = replica.observe(time.monotonic())
    assert (seen.num_judged, seen.num_late) == (1, 1)


async def test_the_router_is_told_nothing_that_is_not_acted_on(rig):
    loop, replica, *_ = rig
    replica.policy = Packs(12)
    hints = RouterHints(replica)
    await loop.tick()
    first = hints.stats(100.0, 3)
    assert (first["pack_seqs"], first["pack_tokens"], first["rank"]) == (7, 900, 3)
    assert first["num_outstanding"] == 0
    assert hints.stats(101.0, 3) == first  # nothing new: nothing for Ray to send around
    assert hints.stats(105.5, 3) == first | {"time_s": 105.5}
    replica.accountant.demand.arrive("a", time.monotonic(), 25)
    told = hints.stats(106.0, 3)
    assert (told["num_outstanding"], told["waiting_tokens"], told["num_arrived"]) == (1, 25, 1)
    for mode in ("advisory", "off"):
        replica.live = parse_live({"mode": mode}, "f")
        await loop.tick()
        assert hints.stats(107.0, 3)["pack_seqs"] is None


async def test_the_joint_policy_learns_and_hints_from_its_own_reports(rig):
    loop, replica, *_ = rig
    replica.live_model = LiveModel(MODEL, replica.base.model_correction)
    replica.serving = Serving(packed=True, max_num_batched_tokens=512)
    replica.policy = policy_for(replica.base, MODEL, serving=replica.serving)
    for _ in range(70):
        serve_one(replica, ttft_s=0.1)
    await loop.tick()
    await loop.tick()
    seen = replica.observe(time.monotonic())
    assert loop.last_decision.reason is not Reason.ERROR
    assert seen.margin == pytest.approx(0.1, abs=0.05)  # where a replica begins, and a little less
    assert seen.pack_seqs >= 1
    assert seen.pack_tokens == pytest.approx(0.05 / 0.0005, rel=0.2)  # a twentieth of the target
    assert RouterHints(replica).stats(1.0, 0)["prompt_tokens_per_s"] == pytest.approx(512 / 0.276)


async def test_the_policy_is_told_how_many_share_the_arrivals(rig):
    loop, replica, *_ = rig
    replica.pool_replicas = 5
    await loop.tick()
    assert replica.policy.seen[-1][0].pool_replicas == 5
