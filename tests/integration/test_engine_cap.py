"""The run-time cap and the step tap on a real vLLM engine (CPU, a tiny random model)."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
import pytest_asyncio
from tiny_engine import ENVIRONMENT, MAX_NUM_SEQS, Engine, save_model

from policies.core.errors import ActuationRefused
from policies.core.types import SLO
from serve_app.demand import Demand
from serve_app.engine.access import external_id, set_step_tap, warm_up
from serve_app.engine.step_link import SOCKET_ENV
from serve_app.engine.tap import STATE

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_model(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        engine = Engine()
        patch.setenv(SOCKET_ENV, engine.receiver.path)
        engine.start(folder)
        await warm_up(SimpleNamespace(_engine_client=engine.llm))
        drainer = asyncio.create_task(engine.drain_forever())
        yield engine
        drainer.cancel()
        engine.llm.shutdown()
        engine.receiver.close()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(running):
    await running.quiet()
    running.events.clear()
    running.watched = True
    await running.set(MAX_NUM_SEQS)
    return running


async def test_a_lowered_cap_drains_and_a_raised_one_admits_at_once(engine):
    first = engine.ask(16, output_tokens=250)
    await engine.until_running(16)
    lowered = await engine.set(4)
    assert lowered.max_num_active_seqs == 4
    assert lowered.num_running == 16
    assert lowered.max_num_seqs == MAX_NUM_SEQS
    mark = len(engine.steps())
    late = engine.ask(8, output_tokens=150)
    answers = await asyncio.gather(*first)
    assert [(tokens, reason) for _, tokens, _, reason in answers] == [(250, "length")] * 16
    early = {request_id for request_id, *_ in answers}
    await engine.until_running(4, apart_from=early)
    capped = engine.steps()[mark:]
    # While more than the cap ran, nobody joined; afterwards four at most.
    draining = [step for step in capped if step & early]
    assert draining
    assert all(step <= early for step in draining if len(step & early) >= 4)
    assert max(len(step) for step in capped if not step & early) == 4

    before = await engine.set(None)
    assert before.num_running == 4
    mark = len(engine.steps())
    assert (await engine.set(8)).max_num_active_seqs == 8
    await engine.until_running(8)
    grown = [len(step) for step in engine.steps()[mark:]]
    first_full = next(i for i, size in enumerate(grown) if size == 8)
    assert set(grown[:first_full]) <= {4}  # from four to eight in one step
    answers = await asyncio.gather(*late)
    assert [(tokens, reason) for _, tokens, _, reason in answers] == [(150, "length")] * 8


async def test_every_token_of_every_request_is_told_once(engine):
    sizes = [(5, 3), (40, 1), (300, 20), (17, 64), (900, 5), (33, 33), (64, 2), (1, 9)]
    tasks = [
        asyncio.create_task(engine.generate(output, prompt_tokens=prompt))
        for prompt, output in sizes
    ]
    answers = await asyncio.gather(*tasks)
    events = await engine.quiet()
    prefill, decode, context = {}, {}, {}
    for event in events:
        if event.kind == "b":
            for share in event.shares:
                name = external_id(share.request_id)
                prefill[name] = prefill.get(name, 0) + share.prefill_tokens
                decode[name] = decode.get(name, 0) + share.decode_tokens
                context[name] = share.context_tokens
    for (prompt, output), (name, tokens, cached, _) in zip(sizes, answers, strict=True):
        assert tokens == output
        assert prefill[name] == prompt - cached  # a preempted request would prefill twice
        assert decode[name] == output - 1  # the first token comes out of the prefill
        assert context[name] == prompt + output - 1
    arrivals = {external_id(s.request_id): s.prefill_tokens
                for e in events if e.kind == "a" for s in e.shares}  # fmt: skip
    assert arrivals == {
        name: prompt for (prompt, _), (name, *_) in zip(sizes, answers, strict=True)
    }
    ended = [external_id(name) for e in events if e.kind == "e" for name in e.finished]
    assert sorted(ended) == sorted(name for name, *_ in answers)
    assert not [e for e in events if e.kind in {"f", "d"}]


async def test_first_tokens_are_judged_by_the_times_that_vllm_tells(engine):
    told, seen = [], []

    class Times(Demand):
        def _judge_first(self, prompt, time_s):
            super()._judge_first(prompt, time_s)
            seen.append(time_s - prompt.arrived_s)

    STATE.first_token_listeners.append(told.append)
    try:
        # More than the batch takes: some wait for seconds, and for the step that is under way.
        await asyncio.gather(*engine.ask(MAX_NUM_SEQS + 16, output_tokens=30, prompt_tokens=200))
        events = await engine.quiet()
    finally:
        STATE.first_token_listeners.remove(told.append)
    demand = Times(SLO(ttft_s=sorted(told)[len(told) // 2]))
    for event in events:
        for share in event.shares if event.kind == "a" else ():
            demand.arrive(share.request_id, event.time_s, share.prefill_tokens)
        demand.on_step(event)
    assert len(seen) == len(told) == MAX_NUM_SEQS + 16
    assert sorted(seen) == pytest.approx(sorted(told), abs=0.1)
    assert max(told) > 1.5 * min(told)
    assert demand.judged == len(told)
    assert 0 < demand.late < len(told)
    assert (demand.num_open, demand.waiting_prompt_tokens) == (0, 0)


async def test_steps_begin_and_end_in_turn(engine):
    await asyncio.gather(*engine.ask(4, output_tokens=30))
    edges = [e for e in await engine.quiet() if e.kind in {"b", "e"}]
    assert [e.kind for e in edges] == ["b", "e"] * (len(edges) // 2)  # synchronous scheduling
    times = [e.time_s for e in edges]
    assert times == sorted(times)


async def test_a_prompt_that_is_in_the_cache_is_not_prefilled_again(engine):
    prompt = [7 + i for i in range(400)]
    _, _, fresh, _ = await engine.generate(2, prompt=prompt)
    name, _, cached, _ = await engine.generate(2, prompt=prompt)
    assert (fresh, cached > 0) == (0, True)
    events = await engine.quiet()
    shares = [
        s for e in events if e.kind == "b" for s in e.shares if external_id(s.request_id) == name
    ]
    assert sum(s.prefill_tokens for s in shares) == len(prompt) - cached


async def test_an_abandoned_request_is_told_as_gone_once(engine):
    stays, leaves = engine.ask(2, output_tokens=400)
    await engine.until_running(2)
    leaves.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaves
    name, tokens, _, _ = await stays
    events = await engine.quiet()
    assert tokens == 400
    gone = [external_id(n) for e in events if e.kind == "f" for n in e.finished]
    assert len(gone) == 1
    assert gone != [name]
    assert [external_id(n) for e in events if e.kind == "e" for n in e.finished] == [name]
    assert (await engine.set(None)).num_running == 0


@pytest.mark.parametrize("cap", [0, -3])
async def test_the_cap_is_never_below_one(engine, cap):
    assert (await engine.set(cap)).max_num_active_seqs == 1
    assert (await engine.generate(3))[1] == 3


async def test_the_engine_refuses_what_is_no_number(engine):
    with pytest.raises(ActuationRefused):
        await engine.set("many")
    assert (await engine.set(None)).max_num_active_seqs == MAX_NUM_SEQS


async def test_a_reader_that_lags_costs_messages_not_answers(engine):
    engine.watched = False
    answers = await asyncio.gather(*engine.ask(16, output_tokens=400))
    assert [tokens for _, tokens, *_ in answers] == [400] * 16
    gaps = engine.receiver.dropped_gaps
    engine.watched = True
    await engine.quiet()  # the reader has caught up with what the socket holds
    name, tokens, *_ = await engine.generate(20)
    events = await engine.quiet()
    assert tokens == 20
    assert engine.receiver.dropped_gaps == gaps + 1
    dropped = next(i for i, e in enumerate(events) if e.kind == "d")
    after = events[dropped:]
    # From the gap on the account is whole again.
    shares = [
        s for e in after if e.kind == "b" for s in e.shares if external_id(s.request_id) == name
    ]
    assert sum(s.decode_tokens for s in shares) == 19
    assert [external_id(n) for e in after if e.kind == "e" for n in e.finished if n] == [name]


async def test_the_step_tap_can_be_switched_off_and_on_in_mid_flight(engine):
    client = SimpleNamespace(_engine_client=engine.llm)
    (task,) = engine.ask(1, output_tokens=900)
    await engine.until_running(1)
    await set_step_tap(client, on=False)
    await engine.quiet()
    engine.events.clear()
    await asyncio.sleep(0.2)
    assert await engine.quiet() == []
    await set_step_tap(client, on=True)
    name, tokens, *_ = await task
    events = await engine.quiet()
    assert tokens == 900
    assert {external_id(s.request_id) for e in events for s in e.shares} == {name}


async def test_an_engine_whose_reader_is_gone_keeps_answering(running):
    """The last test of this module: the link does not come back."""
    running.watched = False
    running.receiver.close()
    answers = await asyncio.gather(*running.ask(8, output_tokens=100))
    assert [tokens for _, tokens, *_ in answers] == [100] * 8
    assert (await running.set(None)).num_running == 0
