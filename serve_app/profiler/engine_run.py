"""A vLLM engine under measurement: starts it, feeds it token ids, records its steps.

The engine runs in child processes (EngineCore and its workers); this process only feeds token ids
and listens to the step link. Names of vLLM touched (tests marked `vllm`): `LLMEngine.add_request`,
`abort_request`, `step`, `has_unfinished_requests`, `engine_core.shutdown`, and the resolved values
in `vllm_config`.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from policies.core.errors import EngineDead
from serve_app.profiler.steps import Step, StepRecorder

QUIET_S = 0.05  # far above the gap between two steps (0.1 ms): no step within it = none to come
QUIET_TIMEOUT_S = 60.0
SHUTDOWN_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How the engine is started. `num_threads` is OMP_NUM_THREADS of the CPU engine; `on_cpu`: the
    CPU engine (bf16, eager), else vLLM's own choices; `random_weights`: the folder at `model_path`
    holds a config.json alone; `extra_args`: EngineArgs, over all else."""

    model_path: str
    max_num_seqs: int = 64
    max_model_len: int = 2048
    num_threads: int = 1
    kv_cache_gib: int = 1
    seed: int = 0
    on_cpu: bool = True
    random_weights: bool = False
    extra_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_gpus(self) -> int:
        """GPUs that vLLM computes on, where it is not its CPU build."""
        degrees = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        return math.prod(int(self.extra_args.get(name, 1)) for name in degrees)

    def environment(self) -> dict[str, str]:
        """What must stand in the environment before vLLM is imported."""
        common = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to --json
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # as under Ray
        }
        if not self.on_cpu:
            return common
        return common | {
            "VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(self.num_threads),
        }

    def engine_args(self) -> dict[str, Any]:
        """Arguments of vLLM's EngineArgs. Prefix caching is off: each prompt has to be computed."""
        args: dict[str, Any] = {
            "model": self.model_path,
            "max_num_seqs": self.max_num_seqs,
            "max_model_len": self.max_model_len,
            "enable_prefix_caching": False,
            "scheduler_cls": "serve_app.engine.scheduler.capped_scheduler",
            "disable_log_stats": True,
            "seed": self.seed,
        }
        if self.on_cpu:
            # "mp" is what Ray's CPU replicas run with.
            args |= {
                "dtype": "bfloat16",
                "enforce_eager": True,
                "distributed_executor_backend": "mp",
            }
        if self.random_weights:
            args |= {"load_format": "dummy", "skip_tokenizer_init": True}
        return args | dict(self.extra_args)


class ProfiledEngine:
    """A running engine. Use it in `with`: leaving the block ends the engine's processes."""

    in_background = True

    def __init__(self, settings: EngineSettings) -> None:
        from serve_app.engine.step_link import SOCKET_ENV, StepReceiver  # msgspec comes with vLLM

        os.environ.update(settings.environment())
        self.settings = settings
        self._recorder = StepRecorder()
        self._receiver = StepReceiver(self._recorder.on_event)
        os.environ[SOCKET_ENV] = self._receiver.path
        self._random = random.Random(settings.seed)  # noqa: S311  (prompts, not secrets)
        self._requests = 0
        self._added: list[str] = []
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine = LLMEngine.from_engine_args(EngineArgs(**settings.engine_args()))
        except BaseException as error:
            self._receiver.close()
            if isinstance(error, Exception):
                raise EngineDead(f"vLLM did not start: {_first_line(error)}") from error
            raise
        finally:
            os.environ.pop(SOCKET_ENV, None)
        config = self._engine.vllm_config
        self.max_num_batched_tokens = int(config.scheduler_config.max_num_batched_tokens)
        cache = config.cache_config
        self.kv_capacity_tokens = int(cache.num_gpu_blocks or 0) * int(cache.block_size)
        self._vocabulary = int(config.model_config.get_vocab_size())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.engine_core.shutdown(timeout=SHUTDOWN_TIMEOUT_S)
        self._receiver.close()

    @property
    def steps(self) -> list[Step]:
        """All steps since the last `forget`."""
        return self._recorder.steps

    @property
    def unfinished(self) -> bool:
        """Whether any request has not been answered."""
        return bool(self._engine.has_unfinished_requests())

    def prepare(self, num_seqs: int, context_tokens: int, prompt_tokens: int) -> None:
        """Nothing is left to do: vLLM gets ready for every batch when it starts."""

    def add(self, prompt_tokens: int, output_tokens: int) -> None:
        """Queue one request of random tokens, which ends after exactly `output_tokens`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._requests += 1
        ids = [self._random.randrange(self._vocabulary) for _ in range(prompt_tokens)]
        sampling = SamplingParams(
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"profile-{self._requests}"
        self._added.append(self._engine.add_request(name, {"prompt_token_ids": ids}, sampling))

    def step(self) -> int:
        """Wait for one step; returns how many requests it finished."""
        finished = sum(bool(output.finished) for output in self._engine.step())
        self._receiver.drain()
        return finished

    def quiesce(self) -> None:
        """Drop all requests and return when no step runs. EngineDead when that never is."""
        self._engine.abort_request(self._added, internal=True)
        self._added.clear()
        deadline_s = time.monotonic() + QUIET_TIMEOUT_S
        seen = -1
        while self._recorder.busy or seen != len(self.steps):
            seen = len(self.steps)
            time.sleep(QUIET_S)
            self._receiver.drain()
            if time.monotonic() > deadline_s:
                raise EngineDead(f"a step did not end within {QUIET_TIMEOUT_S:g} s")

    def forget(self) -> None:
        """Drop the steps recorded so far."""
        self.steps.clear()

    def facts(self) -> dict[str, Any]:
        """What the engine is, for a manifest."""
        import vllm

        return {
            "engine": f"vLLM {vllm.__version__}",
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "kv_capacity_tokens": self.kv_capacity_tokens,
        }


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
