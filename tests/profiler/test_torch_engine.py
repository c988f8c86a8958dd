"""The torch engine on a tiny shape: its numbers against a reference, its steps, its refusals.

What needs a GPU (CUDA graphs) runs where there is one.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from policies.core.errors import EngineError
from serve_app.meters import EnergyMeter
from serve_app.meters.process_tree import ProcessTree
from serve_app.profiler import probe
from serve_app.profiler.probe import Prober
from serve_app.profiler.samples import Kind
from serve_app.profiler.shapes import shape_of
from serve_app.profiler.sweep import Point, Run
from serve_app.profiler.torch_settings import TorchEngineSettings, open_torch_engine

torch = pytest.importorskip("torch")

from reference_decoder import Reference, transformers_model  # noqa: E402

TINY = shape_of("tiny")
NORMED = replace(TINY, model_type="qwen3", head_dim=32, tie_word_embeddings=True)
# Prompts over the budget, a batch over its slots, contexts over a bucket of 64 tokens.
REQUESTS = [(50, 30), (7, 3), (33, 12), (1, 1), (90, 8), (20, 60), (64, 5), (3, 20)]

gpu = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this host has no CUDA device"),
)


@pytest.fixture(autouse=True)
def threads_as_found():
    """The engine sets how many threads torch has in this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tiny(**changes):
    base = {
        "name": "tiny",
        "shape": TINY,
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 5,
        "max_model_len": 160,
        "max_num_batched_tokens": 32,
    }
    return TorchEngineSettings(**(base | changes))


def compare(engine, model, tolerance):
    """Run to the end; each step's logits are those of a forward pass over the whole sequence.
    Returns how many were compared."""
    compared = 0
    while engine.unfinished:
        engine.step()
        for sequence, logits in engine.last_samples():
            if sequence.slot is not None:  # an ended one's tokens are gone
                ids = engine.token_ids(sequence).cpu()
                expected = model(ids[:-1])[-1]
                torch.testing.assert_close(logits.float().cpu(), expected, atol=tolerance, rtol=0.0)
                assert logits[ids[-1]] == logits.max()
                compared += 1
    return compared


@pytest.mark.parametrize("device", ["cpu", gpu])
@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [(TINY, "float32", 1e-4), (NORMED, "float32", 1e-4), (TINY, "bfloat16", 0.1)],
    ids=["llama", "qwen3", "bfloat16"],
)
def test_every_step_computes_what_a_forward_pass_over_the_whole_sequence_does(
    shape, dtype, tolerance, device
):
    settings = tiny(shape=shape, dtype=dtype, device=device)
    model = Reference(settings)
    with open_torch_engine(settings) as engine:
        for request in REQUESTS:
            engine.add(*request)
        # Every output token but the last one of each request, whose sequence has ended.
        assert compare(engine, model, tolerance) == sum(o - 1 for _, o in REQUESTS)
        # What the slots held before does not show in what comes after.
        engine.add(40, 30)
        engine.step()
        engine.quiesce()
        engine.add(12, 4)
        engine.add(80, 4)
        assert compare(engine, model, tolerance) == 6
    assert any(step.num_seqs > 1 and step.prefill_tokens for step in engine.steps)
    assert max(step.num_seqs for step in engine.steps) == settings.max_num_seqs


@pytest.mark.slow  # transformers takes long to import
@pytest.mark.parametrize("shape", [TINY, NORMED], ids=["llama", "qwen3"])
def test_the_reference_is_transformers_model(shape):
    settings = tiny(shape=shape)
    ids = torch.randint(0, shape.vocab_size, (90,), generator=torch.Generator().manual_seed(3))
    expected = transformers_model(settings)(ids[None]).logits[0]
    torch.testing.assert_close(Reference(settings)(ids), expected, atol=1e-4, rtol=0.0)


def test_a_prompt_in_one_chunk_and_in_many_gives_the_same():
    found = []
    for budget in (128, 17):
        with open_torch_engine(tiny(max_num_batched_tokens=budget)) as engine:
            engine.add(100, 2)
            while not engine.last_samples():
                engine.step()
            ((_, logits),) = engine.last_samples()
            found.append((len(engine.steps), logits.clone()))
    assert [count for count, _ in found] == [1, 6]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=0.0)


def test_steps_are_recorded_as_vllms_are():
    with open_torch_engine(tiny()) as engine:
        engine.add(40, 3)
        engine.add(5, 2)
        assert [engine.step() for _ in range(5)] == [0, 0, 0, 2, 0]
        assert not engine.unfinished
        seen = [
            (s.num_seqs, s.kv_tokens, s.prefill_tokens, s.max_context_tokens, s.attended_pairs)
            for s in engine.steps
        ]
        assert seen == [
            (1, 32, 32, 32, 512.0),  # as much of the first prompt as a step may compute
            (1, 40, 8, 40, 288.0),
            (2, 46, 5, 41, 12.5),  # the first decodes beside the second prompt
            (2, 48, 0, 42, 0.0),
        ]
        ends_s = [0.0, *(s.end_s for s in engine.steps)]
        for before_s, step in zip(ends_s, engine.steps, strict=False):
            assert before_s <= step.start_s < step.end_s
        engine.forget()
        assert engine.steps == []


def test_what_is_dropped_leaves_no_trace():
    with open_torch_engine(tiny()) as engine:
        for _ in range(8):
            engine.add(30, 20)
        for _ in range(6):
            engine.step()
        engine.quiesce()
        assert not engine.unfinished
        assert engine.step() == 0
        engine.forget()
        engine.add(10, 2)
        assert [engine.step(), engine.step()] == [0, 1]
        assert [s.kv_tokens for s in engine.steps] == [10, 11]


def test_the_same_seed_gives_the_same_tokens_and_another_one_others():
    def tokens(seed):
        with open_torch_engine(tiny(seed=seed)) as engine:
            engine.add(20, 10)
            for _ in range(9):
                engine.step()
            ((sequence, _),) = engine.last_samples()
            return engine.token_ids(sequence).tolist()

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_a_deep_shape_stays_finite_in_bfloat16():
    shape = replace(TINY, num_hidden_layers=40)
    with open_torch_engine(tiny(shape=shape, dtype="bfloat16")) as engine:
        engine.add(60, 12)
        while engine.unfinished:
            engine.step()
            for _, logits in engine.last_samples():
                assert torch.isfinite(logits).all()
                assert 0.1 < float(logits.float().std()) < 10.0


@pytest.mark.parametrize(
    "point",
    [
        Point(kind=Kind.DECODE, num_seqs=3, context_tokens=32),
        Point(kind=Kind.PREFILL, prompt_tokens=48),
        Point(kind=Kind.MIXED, num_seqs=2, context_tokens=32, prompt_tokens=16),
    ],
    ids=lambda point: point.name,
)
def test_the_prober_takes_samples_from_it(point, monkeypatch):
    slept = []
    clock = SimpleNamespace(
        sleep=slept.append, monotonic=time.monotonic, process_time=time.process_time
    )
    monkeypatch.setattr(probe, "time", clock)
    settings = tiny(max_model_len=4096, max_num_batched_tokens=256)
    with (
        EnergyMeter(("estimated",)) as meter,
        open_torch_engine(settings) as engine,
    ):
        prober = Prober(engine, meter, ProcessTree(os.getpid()), "test")
        prober.window_s = 0.15
        assert prober.warm_up() > 0.0
        samples, steps = prober.measure(Run(point=point, repeat=1))
    sample = samples[0]
    assert sample.kind is point.kind
    assert sample.source == "estimated"
    assert sample.joules_per_step > 0.0
    assert sample.steps >= 8
    prompts = 1 if point.prompt_tokens else 0
    assert sample.num_seqs == pytest.approx(point.num_seqs + prompts)
    assert sample.prefill_tokens == pytest.approx(point.prompt_tokens)
    assert sample.kv_tokens >= point.fill_tokens + point.prompt_tokens
    assert 0.0 < sample.step_time_s < sample.window_s
    assert not any(slept)  # no step runs meanwhile, so a pause would only be a gap
    assert max(step.num_seqs for step in steps) <= settings.max_num_seqs


def test_facts_say_what_ran_and_why():
    with open_torch_engine(tiny()) as engine:
        facts = engine.facts()
    assert facts["engine"] == f"torch {torch.__version__}"
    assert "vllm" in facts["because"].lower()
    assert f"{TINY.num_parameters} parameters in the shape of tiny" in facts["weights"]
    assert facts["cuda_graphs"] == "off"
    assert facts["kv_capacity_tokens"] == 5 * 160


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (150, 11)])
def test_a_request_that_does_not_fit_is_refused(sizes):
    with (
        open_torch_engine(tiny()) as engine,
        pytest.raises(EngineError, match="together at most 160"),
    ):
        engine.add(*sizes)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_taken():
    settings = tiny(
        name="llama-3.1-8b",
        shape=shape_of("llama-3.1-8b"),
        max_num_seqs=4096,
        max_model_len=131_072,
        max_num_batched_tokens=8192,
    )
    with pytest.raises(EngineError) as caught:
        open_torch_engine(settings)
    line = str(caught.value)
    assert line.startswith(
        "llama-3.1-8b needs 29.9 GiB for weights and 32 GiB of KV cache for each"
    )
    assert line.endswith("of the 4096 sequences: lower --max-num-seqs or --max-model-len")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a CUDA device")
def test_without_a_gpu_the_line_says_what_there_is():
    with pytest.raises(EngineError, match=r"torch \S+ finds no CUDA device; --device cpu"):
        open_torch_engine(tiny(device="cuda"))
