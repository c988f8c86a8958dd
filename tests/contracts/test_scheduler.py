"""The capped scheduler on vLLM's real scheduler, step by step, without an engine: cap, drain, tap."""

from __future__ import annotations

import pytest

from serve_app.engine.step_link import SOCKET_ENV, StepReceiver

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]
PROMPT_TOKENS = 20


def make_scheduler(config):
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
    return config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=512, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=16,
        log_stats=True,
    )


class Engine:
    """What EngineCore does with a scheduler, with a model that always says token 7."""

    def __init__(self, config):
        self.scheduler = make_scheduler(config)
        self.added = 0

    def add(self, count, output_tokens):
        from vllm import SamplingParams
        from vllm.v1.request import Request

        names = []
        for _ in range(count):
            names.append(f"chatcmpl-{self.added}-0123abcd")
            self.added += 1
            sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
            prompt = [self.added * 1000 + i for i in range(PROMPT_TOKENS)]  # no shared prefix
            self.scheduler.add_request(
                Request(
                    request_id=names[-1],
                    prompt_token_ids=prompt,
                    sampling_params=sampling,
                    pooling_params=None,
                )
            )
        return names

    def step(self):
        """One step; the requests in it."""
        from vllm.v1.outputs import ModelRunnerOutput

        scheduled = self.scheduler.schedule()
        names = list(scheduled.num_scheduled_tokens)
        done = all(
            r.num_computed_tokens >= r.num_prompt_tokens
            for r in (self.scheduler.requests[name] for name in names)
        )
        assert done  # the token budget lets every prompt in at once
        self.scheduler.update_from_output(
            scheduled,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: i for i, name in enumerate(names)},
                sampled_token_ids=[[7] for _ in names],
            ),
        )
        return set(names)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def engine(request, engine_config, monkeypatch):
    monkeypatch.delenv(SOCKET_ENV, raising=False)
    return Engine(engine_config(request.param))


def test_the_base_class_is_the_one_that_vllm_would_have_picked(engine_config):
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from serve_app.engine.scheduler import CappedAsyncScheduler, CappedScheduler

    sync = make_scheduler(engine_config(False))
    assert type(sync) is CappedScheduler
    assert isinstance(sync, Scheduler)
    assert not isinstance(sync, AsyncScheduler)
    asynchronous = make_scheduler(engine_config(True))
    assert type(asynchronous) is CappedAsyncScheduler
    assert isinstance(asynchronous, AsyncScheduler)


def test_a_lowered_cap_drains_and_never_preempts(engine):
    long = engine.add(8, output_tokens=12)
    assert engine.step() == set(long)
    assert engine.scheduler.set_max_num_active_seqs(3) == (3, 8, 32)
    late = engine.add(4, output_tokens=4)
    for _ in range(11):
        assert engine.step() == set(long)  # all eight keep running, nobody joins them
    assert not engine.scheduler.running
    sizes = []
    while engine.scheduler.requests:
        seen = engine.step()
        sizes.append(len(seen))
        assert seen <= set(late)
    assert max(sizes) == 3
    assert len(sizes) == 8  # 3 x 4 steps, then the last one's 4


def test_a_raised_cap_takes_effect_on_the_next_step(engine):
    engine.scheduler.set_max_num_active_seqs(2)
    engine.add(10, output_tokens=30)
    assert len(engine.step()) == 2
    assert engine.scheduler.set_max_num_active_seqs(7) == (7, 2, 32)
    assert len(engine.step()) == 7
    assert engine.scheduler.set_max_num_active_seqs(None) == (7, 7, 32)


@pytest.mark.parametrize(("asked", "in_force"), [(0, 1), (-5, 1), (1, 1), (32, 32), (1000, 32)])
def test_the_cap_stays_between_one_and_the_capacity(engine, asked, in_force):
    assert engine.scheduler.set_max_num_active_seqs(asked)[0] == in_force


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def tapped(request, engine_config, monkeypatch):
    events = []
    receiver = StepReceiver(events.append)
    monkeypatch.setenv(SOCKET_ENV, receiver.path)
    engine = Engine(engine_config(request.param))
    yield engine, receiver, events
    receiver.close()


def test_the_tap_tells_arrivals_steps_and_ends(tapped):
    engine, receiver, events = tapped
    first, second = engine.add(2, output_tokens=3)
    for _ in range(3):
        assert engine.step() == {first, second}
    receiver.drain()
    assert [e.kind for e in events] == ["a", "a", "b", "e", "b", "e", "b", "e"]
    assert [e.shares[0].request_id for e in events[:2]] == [first, second]
    assert [e.shares[0].prefill_tokens for e in events[:2]] == [PROMPT_TOKENS, PROMPT_TOKENS]
    steps = [[(s.prefill_tokens, s.decode_tokens, s.context_tokens) for s in e.shares]
             for e in events if e.kind == "b"]  # fmt: skip
    assert steps == [[(20, 0, 20)] * 2, [(0, 1, 21)] * 2, [(0, 1, 22)] * 2]
    assert [set(e.finished) for e in events if e.kind == "e"] == [set(), set(), {first, second}]
    assert all(b.time_s <= e.time_s for b, e in zip(events[2::2], events[3::2], strict=True))


def test_a_begin_is_written_only_once_the_workers_have_the_step(tapped):
    """Writing it before holds every step up: see scheduler.py."""
    engine, receiver, events = tapped
    engine.add(1, output_tokens=3)
    receiver.drain()
    events.clear()
    scheduled = engine.scheduler.schedule()
    receiver.drain()
    assert events == []
    assert engine.scheduler.get_grammar_bitmask(scheduled) is None
    receiver.drain()
    assert [e.kind for e in events] == ["b"]


def test_the_tap_tells_aborts_once(tapped):
    from vllm.v1.request import RequestStatus

    engine, receiver, events = tapped
    first, second = engine.add(2, output_tokens=5)
    engine.step()
    gone = engine.scheduler.finish_requests([first], RequestStatus.FINISHED_ABORTED)
    assert [request.request_id for request in gone] == [first]
    engine.scheduler.finish_requests([first], RequestStatus.FINISHED_ABORTED)
    engine.scheduler.finish_requests("never-seen", RequestStatus.FINISHED_ABORTED)
    while engine.scheduler.requests:
        engine.step()
    receiver.drain()
    assert [e.finished for e in events if e.kind == "f"] == [(first,)]
    assert [n for e in events if e.kind == "e" for n in e.finished] == [second]
