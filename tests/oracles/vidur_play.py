"""Plays one trace through Vidur, with its own interpreter: started by vidur_speed.py, not by hand.

Reads a JSON document from stdin (coefficients of a step, engine, trace file), and writes one to the
file that it names: wall and CPU seconds of `Simulator.run`, steps, and per request the seconds of
arrival, first token and end. Vidur's tables of kernel times are on a model hub; here they are made
from the same step-time model that our simulator plays. All else is Vidur's own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ["WANDB_MODE"] = "disabled"

from vidur.config import (
    CacheConfig,
    ClusterConfig,
    LORGlobalSchedulerConfig,
    MetricsConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
    TraceRequestGeneratorConfig,
)
from vidur.config.config import LinearRegressionExecutionTimePredictorConfig
from vidur.execution_time_predictor.linear_regression_execution_time_predictor import (
    LinearRegressionExecutionTimePredictor as Predictor,
)
from vidur.simulator import Simulator

MS = 1e3
LAYERS = 32  # of the model named below: Vidur counts kernel times per layer
KV_GRAIN = 16  # tokens to which Vidur rounds a context up, its block size; 256 by default


class Table(dict):
    """A prediction table that is filled as it is asked."""

    def __init__(self, function):
        super().__init__()
        self._function = function

    def __missing__(self, key):
        self[key] = value = self._function(*key) * MS / LAYERS
        return value


def tables(step):
    """t0 + a n + b kv + c prefill + q pairs, split over Vidur's operators: what a step takes
    anyway, what its decoding sequences add, what each chunk of a prompt adds."""

    def decode(seqs, context):
        return seqs * (step["a"] + step["b"] * context)

    def prefill(after, chunk):
        before = max(after - chunk, 0)
        pairs = 0.5 * (after**2 - before**2)
        return step["a"] + step["b"] * after + step["c"] * chunk + step["q"] * pairs

    zero = (
        "attn_pre_proj", "attn_post_proj", "mlp_down_proj", "mlp_act", "attn_rope", "add",
        "attn_kv_cache_save", "input_layernorm", "post_attention_layernorm",
    )  # fmt: skip
    return {
        **{name: Table(lambda _: 0.0) for name in zero},
        "mlp_up_proj": Table(lambda _: step["t0"]),
        "attn_decode": Table(decode),
        "attn_prefill": Table(prefill),
    }


def config(asked, folder):
    """One replica, chunked prefill with a token budget (Sarathi), metrics off."""
    return SimulationConfig(
        log_level="error",
        cluster_config=ClusterConfig(
            num_replicas=1,
            replica_config=ReplicaConfig(
                model_name="meta-llama/Llama-3-8B",
                num_pipeline_stages=1,
                tensor_parallel_size=1,
                device="h100",
                network_device="h100_dgx",
            ),
            cache_config=CacheConfig(
                block_size=16,
                num_blocks=asked["kv_capacity_tokens"] // 16,
                watermark_blocks_fraction=0.0,
            ),
            global_scheduler_config=LORGlobalSchedulerConfig(),
            replica_scheduler_config=SarathiSchedulerConfig(
                batch_size_cap=asked["max_num_seqs"], chunk_size=asked["max_num_batched_tokens"]
            ),
        ),
        request_generator_config=TraceRequestGeneratorConfig(
            trace_file=asked["trace"],
            date="day",
            prefill_scale_factor=1.0,
            decode_scale_factor=1.0,
            time_scale_factor=1.0,
            max_tokens=1 << 17,
        ),
        execution_time_predictor_config=LinearRegressionExecutionTimePredictorConfig(
            kv_cache_prediction_granularity=KV_GRAIN,
            attention_decode_batching_overhead_fraction=0.0,
            cache_dir=str(folder / "cache"),
        ),
        metrics_config=MetricsConfig(
            write_metrics=False,
            store_plots=False,
            enable_chrome_trace=False,
            store_request_metrics=False,
            store_batch_metrics=False,
            store_utilization_metrics=False,
            output_dir=str(folder / "output"),
        ),
    )


def main() -> None:
    asked = json.load(sys.stdin)
    folder = Path(asked["folder"])
    made = tables(asked["step"])
    Predictor._load_predictions_from_hf = lambda _: made
    # As published in 0.0.26 one method of it is declared abstract, though it is there.
    Predictor.__abstractmethods__ = frozenset()
    simulator = Simulator(config(asked, folder))
    requests = [event._request for _, event in simulator._event_queue]
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    simulator.run()
    wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    held = [(r._arrived_at, r._prefill_completed_at, r._completed_at) for r in requests]
    (folder / "result.json").write_text(
        json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "requests": held})
    )


if __name__ == "__main__":
    main()
