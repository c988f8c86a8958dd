"""vLLM's private names that serve_app/engine rests on (vllm 0.29)."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from policies.core.errors import ActuationRefused
from serve_app.engine.access import (
    WARM_UP_ID,
    CapState,
    external_id,
    response_id,
    set_max_num_active_seqs,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]


def parameters(function):
    return list(inspect.signature(function).parameters)


def engine_core_request(request_id, n=1):
    """A request with the internal id that vLLM gives it."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.input_processor import InputProcessor

    request = EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[2, 3, 4],
        mm_features=None,
        sampling_params=SamplingParams(n=n),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    InputProcessor.assign_request_id(request)
    return request


def test_versions_are_the_ones_that_the_names_were_checked_on():
    import vllm

    assert vllm.__version__.startswith("0.29.")


def test_scheduler_methods_take_what_we_pass_on():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    for base in (Scheduler, AsyncScheduler):
        assert parameters(base.schedule)[0] == "self"
        assert parameters(base.update_from_output) == [
            "self", "scheduler_output", "model_runner_output",
        ]  # fmt: skip
        assert parameters(base.add_request) == ["self", "request"]
        assert parameters(base.finish_requests) == ["self", "request_ids", "finished_status"]
        assert parameters(base.__init__)[:2] == ["self", "vllm_config"] or base is AsyncScheduler


def test_the_engine_asks_for_the_grammar_bitmask_while_the_workers_run():
    """The step's begin is written then (scheduler.py)."""
    from vllm.v1.engine.core import EngineCore

    step = inspect.getsource(EngineCore.step)
    calls = [".schedule(", ".execute_model(", ".get_grammar_bitmask(", "future.result("]
    places = [step.index(call) for call in calls]
    assert places == sorted(places)
    assert "non_block=True" in step[places[1] : places[2]]


def test_the_scheduler_class_is_resolved_from_our_path(engine_config):
    from serve_app.engine.scheduler import capped_scheduler

    assert engine_config(False).scheduler_config.get_scheduler_cls() is capped_scheduler


def test_the_engine_core_answers_utility_calls_by_name():
    from vllm.v1.engine.core import EngineCore, EngineCoreProc

    import serve_app.engine.scheduler  # noqa: F401 - adds the utility

    asked = []
    core = SimpleNamespace(
        scheduler=SimpleNamespace(
            set_max_num_active_seqs=lambda cap: asked.append(cap) or (4, 1, 8)
        )
    )
    assert EngineCore.jouleserve_set_max_num_active_seqs(core, 4) == (4, 1, 8)
    assert asked == [4]
    dispatch = inspect.getsource(EngineCoreProc._handle_client_request)
    assert "getattr(self, method_name)" in dispatch
    assert issubclass(EngineCoreProc, EngineCore)


def test_utility_calls_from_the_client_are_asynchronous():
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient

    assert issubclass(AsyncMPClient, EngineCoreClient)
    call = AsyncMPClient.call_utility_async
    assert inspect.iscoroutinefunction(call)
    assert parameters(call) == ["self", "method", "args"]
    assert "self.engine_core = EngineCoreClient." in inspect.getsource(AsyncLLM.__init__)
    assert parameters(AsyncLLM.generate)[:4] == ["self", "prompt", "sampling_params", "request_id"]


def test_an_engine_without_our_scheduler_refuses_the_cap():
    async def call_utility_async(method, *args):
        raise Exception(f"Call to {method} method failed: no attribute")

    core = SimpleNamespace(call_utility_async=call_utility_async)
    engine = SimpleNamespace(_engine_client=SimpleNamespace(engine_core=core))
    with pytest.raises(ActuationRefused, match="run-time cap"):
        asyncio.run(set_max_num_active_seqs(engine, 4))


def test_a_cap_answer_that_crossed_the_wire_as_a_list():
    async def call_utility_async(method, cap):
        assert method == "jouleserve_set_max_num_active_seqs"
        return [cap, 3, 64]

    core = SimpleNamespace(call_utility_async=call_utility_async)
    engine = SimpleNamespace(_engine_client=SimpleNamespace(engine_core=core))
    assert asyncio.run(set_max_num_active_seqs(engine, 4)) == CapState(4, 3, 64)


@pytest.mark.parametrize(
    "given",
    [
        "chatcmpl-0123456789abcdef",
        "cmpl-8f3a51bc00aa-0",
        "jouleserve-warm-up",
        "chatcmpl-job-deadbeef",  # a caller's id may itself end like vLLM's suffix
    ],
)
def test_external_id_undoes_what_vllm_does_to_an_id(given):
    request = engine_core_request(given)
    assert request.external_req_id == given
    assert request.request_id != given
    assert external_id(request.request_id) == given


def test_external_id_of_one_of_n_samples():
    from vllm.v1.engine.parallel_sampling import ParentRequest

    request = engine_core_request("chatcmpl-abc", n=3)
    parent = ParentRequest(request)
    for index in range(3):
        child_id, _ = parent.get_child_info(index)
        assert child_id != request.request_id
        assert external_id(child_id) == "chatcmpl-abc"


def test_response_id_joins_the_prompts_of_one_completions_call():
    assert response_id("cmpl-8f3a51bc00aa-0") == response_id("cmpl-8f3a51bc00aa-11")
    assert response_id("cmpl-8f3a51bc00aa-11") == "cmpl-8f3a51bc00aa"
    assert response_id("chatcmpl-8f3a51bc00aa") == "chatcmpl-8f3a51bc00aa"
    assert response_id(WARM_UP_ID) == WARM_UP_ID


def test_completions_number_their_prompts_as_response_id_expects():
    from vllm.entrypoints.openai.completion import serving

    source = inspect.getsource(serving)
    assert 'f"cmpl-{' in source
    assert 'f"{request_id}-{i}"' in source


def test_a_finished_request_in_our_words():
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import FinishedRequestStats

    from serve_app.engine.tap import FinishedRequest, _finished

    stats = FinishedRequestStats(
        finish_reason=FinishReason.LENGTH,
        request_id="chatcmpl-1",
        e2e_latency=2.5,
        num_prompt_tokens=7,
        num_generation_tokens=5,
        queued_time=0.25,
        prefill_time=0.25,
        decode_time=2.0,
        num_cached_tokens=4,
    )
    assert _finished(stats) == FinishedRequest(
        request_id="chatcmpl-1",
        outcome="length",
        ttft_s=0.5,
        tpot_s=0.5,
        e2e_s=2.5,
        queue_s=0.25,
        prompt_tokens=7,
        output_tokens=5,
        cached_tokens=4,
    )
    one = FinishedRequestStats(
        finish_reason=FinishReason.STOP, e2e_latency=0.5, num_generation_tokens=1
    )
    assert (_finished(one).tpot_s, _finished(one).outcome) == (None, "stop")
    assert str(FinishReason.ABORT) == "abort"


def test_the_tap_reads_vllms_iteration_statistics(monkeypatch):
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.loggers import StatLoggerBase
    from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats, SchedulerStats

    from serve_app.engine import tap

    state = tap.EngineState()
    monkeypatch.setattr(tap, "STATE", state)
    heard, gaps, firsts = [], [], []
    state.listeners.append(heard.append)
    state.itl_listeners.append(gaps.extend)
    state.first_token_listeners.append(firsts.append)

    iteration = IterationStats()
    iteration.num_generation_tokens = 3
    iteration.time_to_first_tokens_iter = [0.4]
    iteration.inter_token_latencies_iter = [0.02, 0.03]
    iteration.finished_requests = [
        FinishedRequestStats(
            finish_reason=FinishReason.STOP,
            request_id="r",
            num_prompt_tokens=7,
            num_generation_tokens=2,
            decode_time=0.1,
        )
    ]
    logger = tap.EngineTap(None, 0)
    scheduler = SchedulerStats(num_running_reqs=5, num_waiting_reqs=2, kv_cache_usage=0.25)
    # As vLLM calls it: by name, with more than we know.
    assert parameters(StatLoggerBase.record)[:3] == ["self", "scheduler_stats", "iteration_stats"]
    logger.record(
        scheduler_stats=scheduler, iteration_stats=iteration, mm_cache_stats=None, engine_idx=0
    )
    assert (state.num_running, state.num_waiting, state.kv_usage_ratio) == (5, 2, 0.25)
    assert (state.generated_tokens, state.prompt_tokens) == (3, 7)
    assert (firsts, gaps, [f.request_id for f in heard]) == ([0.4], [0.02, 0.03], ["r"])


def test_vllm_finds_the_tap_among_its_plugins():
    from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories

    from serve_app.engine.tap import EngineTap

    assert EngineTap in load_stat_logger_plugin_factories()
