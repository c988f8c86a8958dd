"""The profiler on the real engine: a tiny sweep, and a fit of what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.profiler.samples import Kind, Phase
from serve_app.profiler.store import load_manifest, load_samples

COMMAND = Path(sys.executable).with_name("jouleserve")


@pytest.mark.vllm
@pytest.mark.timeout(240)
def test_tiny_sweep_on_the_real_engine(tmp_path):
    """With made-up weights: they cost as much as real ones, and need no model."""
    options = "--random-weights --max-num-seqs 4 --max-model-len 256 --repeats 1 --duration-budget-s 60 --json"
    options += " --allow-disturbed"  # tests share their machine
    done = subprocess.run(
        [COMMAND, "profile", "smollm2-135m", "--out", tmp_path / "p.yaml", *options.split()],
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    # One short window a point beside other tests: whether that is exact enough is up to chance.
    assert done.returncode in {0, 1}, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document["trusted"] is (done.returncode == 0)
    assert document["profile"]["latency"]["t0_s"] > 0

    samples = load_samples(tmp_path / "p.samples")
    manifest = load_manifest(tmp_path / "p.samples")
    assert manifest["meter"]["backends"]
    assert manifest["config"]["engine_args"]["load_format"] == "dummy"
    assert {s.kind for s in samples} == set(Kind)
    for sample in samples:
        assert sample.draw_watts is not None, sample.reason
    batch = [s for s in samples if s.point == "decode-n4-ctx32" and s.phase is Phase.STEADY]
    assert batch[0].num_seqs == 4
    assert batch[0].prefill_tokens == 0
    assert batch[0].gap_s_per_step < 0.5 * batch[0].step_time_s
    alone = [s for s in samples if s.kind is Kind.PREFILL]
    for s in alone:
        assert s.num_seqs == pytest.approx(s.prefill_tokens / s.max_context_tokens)
    mixed = [s for s in samples if s.kind is Kind.MIXED and s.phase is Phase.STEADY]
    assert all(s.prefill_tokens > 0 and s.num_seqs > 3 for s in mixed)
