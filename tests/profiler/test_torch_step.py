"""The sizes that the torch engine computes with, and its settings."""

import pytest

from policies.core.errors import ConfigError
from serve_app.profiler.batching import Batch, Sequence
from serve_app.profiler.shapes import shape_of
from serve_app.profiler.sweep import SweepSettings, design
from serve_app.profiler.torch_settings import TorchEngineSettings

pytest.importorskip("torch")

from serve_app.profiler.torch_step import Buckets


def test_sizes_are_rounded_up_a_little_and_never_beyond_the_limit():
    buckets = Buckets(max_num_seqs=64, max_model_len=4096)
    for n in range(1, 65):
        assert n <= buckets.decode_rows(n) <= n + 3
        assert Buckets(max_num_seqs=n, max_model_len=64).decode_rows(n) == n
    last = 0
    for tokens in range(1, 4097):
        read = buckets.context_tokens(tokens)
        assert max(tokens, last) <= read <= max(tokens + 63, 1.125 * tokens + 1)
        assert read % 64 == 0
        assert Buckets(max_num_seqs=1, max_model_len=tokens).context_tokens(tokens) == tokens
        last = read


@pytest.mark.parametrize(
    "point", design(SweepSettings(max_num_seqs=24))[1:], ids=lambda point: point.name
)
def test_a_point_of_the_sweep_needs_no_graph_that_was_not_prepared(point):
    buckets = Buckets(max_num_seqs=24, max_model_len=2048)
    prepared = buckets.layouts_for(point.num_seqs, point.context_tokens, point.prompt_tokens)
    batch, met = Batch(24, 2048), set()
    for _ in range(point.num_seqs):
        batch.add(
            Sequence(prompt_tokens=point.context_tokens, output_tokens=2048 - point.context_tokens)
        )
    for step in range(500):
        if point.prompt_tokens and step > point.num_seqs:
            batch.add(Sequence(prompt_tokens=point.prompt_tokens, output_tokens=1))
        plan = batch.plan()
        if plan is not None and plan.prompt_tokens <= 512:
            met.add(buckets.layout_of(plan))
            assert plan.prompt_start == 0
        if plan is not None:
            batch.complete(plan)
    assert met <= set(prepared)
    assert all(layout.rows for layout in prepared)
    assert len(prepared) <= 80  # each takes a moment to capture


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"device": "tpu"}, "--device: tpu; allowed: cuda, cpu"),
        ({"dtype": "int8"}, "dtype: int8; allowed: bfloat16, float32"),
        ({"max_num_seqs": 0}, "--max-num-seqs: 0; allowed: 1 to 2047"),
        ({"max_num_seqs": 2048}, "--max-num-seqs: 2048; allowed: 1 to 2047"),
        ({"max_model_len": 4097}, "--max-model-len: 4097; allowed: 2 to 4096 (tiny)"),
        ({"num_threads": 0}, "--threads: 0; allowed: 1 or more"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization: 1.1; allowed: above 0, at"),
    ],
)
def test_settings_out_of_range_name_the_option(changes, line):
    with pytest.raises(ConfigError) as caught:
        TorchEngineSettings(name="tiny", shape=shape_of("tiny"), **changes)
    assert str(caught.value).startswith(line)
