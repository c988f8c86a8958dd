"""The replica tick: the cap follows the policy, a pin wins, advisory and off act on nothing, and a
failing stage never stops the next."""

import time
from dataclasses import replace

import pytest
from loop_cases import Wants, value
from small_model import MODEL

from policies.core.attribution import StepShare
from policies.core.lengths import bins_of
from policies.core.types import Reason
from serve_app.deciders import Serving, policy_for
from serve_app.engine.step_link import StepEvent
from serve_app.engine.tap import FinishedRequest
from serve_app.live_model import LiveModel
from serve_app.observers.recorder import verdict
from serve_app.replica_hints import RouterHints
from serve_app.settings import parse_energy, parse_live


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
