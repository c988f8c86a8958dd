"""When a request that arrives now gets its first token, against sums done by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model.first_token import Backlog, expected_ttft_s
from policies.model.latency import LatencyModel

MODEL = LatencyModel(
    t0_s=0.01, a_s_per_seq=0.001, b_s_per_kv_token=0.0, c_s_per_prefill_token=0.0001
)
EMPTY = Backlog(
    num_running=0.0,
    num_waiting=0.0,
    cap=4,
    waiting_prompt_tokens=0.0,
    prompt_tokens=100.0,
    output_tokens=50.0,
    budget_tokens=500,
)


def test_an_idle_replica_computes_the_prompt_in_one_step():
    assert expected_ttft_s(MODEL, EMPTY) == pytest.approx(0.01 + 0.0001 * 100)


def test_prompts_before_it_are_computed_in_steps_of_the_budget_beside_those_that_run():
    backlog = replace(EMPTY, num_running=2.0, num_waiting=1.0, waiting_prompt_tokens=1000.0)
    # 1,100 tokens in 3 steps with two sequences.
    assert expected_ttft_s(MODEL, backlog) == pytest.approx(3 * 0.012 + 0.0001 * 1100)


def test_where_the_batch_is_full_it_waits_for_places():
    backlog = replace(EMPTY, num_running=4.0, num_waiting=3.0, waiting_prompt_tokens=300.0)
    # Four must end before it; four end in 50 steps of four sequences.
    assert expected_ttft_s(MODEL, backlog) == pytest.approx(4 * 50 * 0.014 / 4)


@given(
    st.floats(0, 300), st.floats(0, 300), st.floats(0, 1e6), st.integers(1, 256), st.floats(0, 1e4)
)
def test_more_before_it_is_never_sooner(running, waiting, tokens, cap, more):
    backlog = replace(
        EMPTY, num_running=running, num_waiting=waiting, cap=cap, waiting_prompt_tokens=tokens
    )
    now_s = expected_ttft_s(MODEL, backlog)
    assert 0.0 < now_s < float("inf")
    longer = replace(backlog, waiting_prompt_tokens=tokens + more, num_waiting=waiting + 1.0)
    assert expected_ttft_s(MODEL, longer) >= now_s * (1 - 1e-9)
