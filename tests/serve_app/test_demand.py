"""What a replica's requests ask for and how they fare, against plain recomputation."""

import random

import pytest

from policies.core.attribution import StepShare
from policies.core.lengths import bins_of
from policies.core.types import SLO
from serve_app.demand import LENGTHS_EVERY_S, LENGTHS_KEPT, Demand
from serve_app.engine.step_link import StepEvent
from serve_app.engine.tap import FinishedRequest


def share(name, prefill, context, decode=0):
    return StepShare(
        request_id=name, prefill_tokens=prefill, decode_tokens=decode, context_tokens=context
    )


def begin(demand, time_s, *shares):
    demand.on_step(StepEvent(kind="b", time_s=time_s, shares=shares))


def end(demand, time_s, *finished):
    demand.on_step(StepEvent(kind="e", time_s=time_s, finished=finished))


def ended(ttft_s=0.5, tpot_s=0.05, prompt_tokens=10, output_tokens=20):
    return FinishedRequest(
        request_id="x", outcome="stop", ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=2.0, queue_s=0.0,
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, cached_tokens=0,
    )  # fmt: skip


def counters(demand):
    return demand.judged, demand.late, demand.slow


def test_waiting_tokens_are_those_not_computed_at_the_end_of_a_step():
    demand = Demand()
    demand.arrive("a", 0.0, 100)
    demand.arrive("b", 0.0, 50)
    begin(demand, 0.1, share("a", 64, 64))
    assert demand.waiting_prompt_tokens == 150  # the step is under way
    end(demand, 0.2)
    assert demand.waiting_prompt_tokens == 86
    begin(demand, 0.2, share("a", 36, 100), share("b", 28, 28))
    end(demand, 0.3)
    assert (demand.waiting_prompt_tokens, demand.judged) == (22, 1)
    demand.on_step(StepEvent(kind="f", time_s=0.4, finished=("b",)))
    assert (demand.waiting_prompt_tokens, demand.num_open, demand.judged) == (0, 1, 1)
    end(demand, 0.5, "a")
    assert demand.num_open == 0


def test_cached_tokens_do_not_wait_any_more():
    demand = Demand()
    demand.arrive("a", 0.0, 400)
    begin(demand, 0.1, share("a", 16, 400))  # 384 came from the prefix cache
    end(demand, 0.2)
    assert (demand.waiting_prompt_tokens, demand.judged) == (0, 1)


def test_steps_that_overlap_end_in_turn():
    demand = Demand(SLO(ttft_s=1.0))
    demand.arrive("a", 0.0, 10)
    demand.arrive("b", 0.0, 10)
    begin(demand, 0.1, share("a", 10, 10))
    begin(demand, 0.2, share("b", 10, 10), share("a", 0, 11, decode=1))
    end(demand, 0.9)
    assert counters(demand) == (1, 0, 0)
    end(demand, 1.1)
    assert counters(demand) == (2, 1, 0)


def test_a_first_token_is_judged_once_when_it_comes_by_the_targets_in_force():
    demand = Demand(SLO(ttft_s=1.0, tpot_s=0.1))
    demand.attainable_tokens = 500
    for name, tokens in (("quick", 10), ("late", 10), ("long", 501)):
        demand.arrive(name, 0.0, tokens)
    begin(demand, 0.5, share("quick", 10, 10))
    end(demand, 1.0)  # at the target: in time
    begin(demand, 1.0, share("late", 10, 10), share("long", 501, 501), share("quick", 0, 11, 1))
    end(demand, 1.2)
    assert counters(demand) == (2, 1, 0)
    begin(demand, 1.2, share("late", 10, 11))  # preempted and computed again: judged already
    end(demand, 1.3)
    assert counters(demand) == (2, 1, 0)
    demand.slo = SLO(ttft_s=5.0, tpot_s=0.1)
    demand.arrive("now in time", 1.3, 10)
    begin(demand, 4.0, share("now in time", 10, 10))
    end(demand, 4.1)
    assert counters(demand) == (3, 1, 0)


def test_who_leaves_after_the_target_was_late_and_before_it_is_nobodys_fault():
    demand = Demand(SLO(ttft_s=1.0))
    demand.arrive("patient", 0.0, 10)
    demand.arrive("impatient", 0.0, 10)
    demand.on_step(StepEvent(kind="f", time_s=0.9, finished=("impatient",)))
    demand.on_step(StepEvent(kind="f", time_s=1.1, finished=("patient",)))
    assert counters(demand) == (1, 1, 0)


@pytest.mark.parametrize(
    ("request_", "slow"),
    [
        (ended(tpot_s=0.11), 1),
        (ended(tpot_s=0.09), 0),
        (ended(tpot_s=None), 0),
        (ended(tpot_s=0.11, ttft_s=1.5), 0),  # late already: missed once
        (ended(tpot_s=0.11, prompt_tokens=501), 0),
    ],
)
def test_slow_are_those_in_time_whose_gaps_are_too_long(request_, slow):
    demand = Demand(SLO(ttft_s=1.0, tpot_s=0.1))
    demand.attainable_tokens = 500
    demand.ended(request_)
    assert demand.slow == slow


def test_bins_are_of_the_last_512_and_looked_at_every_10_s():
    demand, rng = Demand(), random.Random(3)
    assert demand.bins(0.0) == (None, None)
    prompts = [rng.randrange(1, 4000) for _ in range(LENGTHS_KEPT + 300)]
    for i, tokens in enumerate(prompts):
        demand.arrive(str(i), 0.01 * i, tokens)
    assert demand.bins(1.0) == (bins_of(prompts[-LENGTHS_KEPT:]), None)
    demand.ended(ended(output_tokens=7))
    assert demand.bins(1.5)[1] == bins_of([7])  # what is not known is looked at each time
    demand.ended(ended(output_tokens=9))
    assert demand.bins(1.5 + LENGTHS_EVERY_S - 0.1)[1] == bins_of([7])
    assert demand.bins(1.5 + LENGTHS_EVERY_S)[1] == bins_of([7, 9])
    assert demand.mean_prompt_tokens == pytest.approx(sum(prompts[-LENGTHS_KEPT:]) / LENGTHS_KEPT)


def test_the_rate_of_the_last_seconds():
    demand = Demand()
    demand.recent_per_s(0.0)
    for i in range(40):
        demand.arrive(str(i), 0.5 * i, 1)
    assert demand.recent_per_s(19.5) == pytest.approx(11 / 5.0)  # 14.5 s to 19.5 s
    assert demand.recent_per_s(60.0) == 0.0


def test_lost_messages_leave_nothing_behind():
    demand = Demand()
    for i in range(100):
        demand.arrive(str(i), 0.0, 10)
    begin(demand, 0.1, share("0", 10, 10))
    demand.on_step(StepEvent(kind="d", time_s=0.2))
    assert (demand.num_open, demand.waiting_prompt_tokens) == (0, 0)
    end(demand, 0.3, "0", "1")
    begin(demand, 0.3, share("2", 10, 10))
    end(demand, 0.4, "2")
    assert counters(demand) == (0, 0, 0)
    assert (demand.num_open, demand.waiting_prompt_tokens) == (0, 0)
