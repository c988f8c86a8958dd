"""Which points a profile measures, and in which order. Pure: no engine, no clock."""

from __future__ import annotations

import random
from dataclasses import dataclass

from policies.core.errors import ConfigError
from serve_app.profiler.samples import Kind

SHORT_CONTEXT_TOKENS = 32
LONG_CONTEXT_RATIO = 0.875  # of max_model_len: leaves room for the tokens that are generated
KV_FILL_TOKENS = 8192  # long contexts of one batch together; their prefill is most of the time
DEEP_KV_FILL_TOKENS = 16384  # one point reaches further, so that b is not extrapolated far
KV_CAPACITY_SHARE = 0.8
GROWTH_TOKENS = 160  # generated while a decode point is measured, at most a KV block more
PREFILL_TOKENS = (16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048)
MIXED = ((4, 64), (8, 256), (16, 32), (16, 128), (32, 64))  # (decoding sequences, prompt tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One thing to measure. `num_seqs`: decoding sequences; `context_tokens`: their prompts;
    `prompt_tokens`: the prompt that comes in with every step (prefill and mixed points)."""

    kind: Kind
    num_seqs: int = 0
    context_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def name(self) -> str:
        """Unique within a sweep, and stable: it is the key by which a sweep resumes."""
        if self.kind is Kind.IDLE:
            return "idle"
        parts = [self.kind.value]
        if self.num_seqs:
            parts.append(f"n{self.num_seqs}-ctx{self.context_tokens}")
        if self.prompt_tokens:
            parts.append(f"p{self.prompt_tokens}")
        return "-".join(parts)

    @property
    def fill_tokens(self) -> int:
        """Prompt tokens to compute before the decoding batch stands."""
        return self.num_seqs * self.context_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSettings:
    """The limits of a sweep. `kv_capacity_tokens`: what the engine's KV cache holds;
    `max_num_batched_tokens`: its chunked-prefill budget per step."""

    max_num_seqs: int = 64
    max_model_len: int = 2048
    max_num_batched_tokens: int = 2048
    kv_capacity_tokens: int = 1 << 30
    repeats: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_num_seqs < 2:
            raise ConfigError(f"--max-num-seqs: {self.max_num_seqs}; allowed: 2 or more")
        if self.max_model_len < 128:
            raise ConfigError(f"--max-model-len: {self.max_model_len}; allowed: 128 or more")
        if self.repeats < 1:
            raise ConfigError(f"--repeats: {self.repeats}; allowed: 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One measurement of a point. `repeat` counts from 1."""

    point: Point
    repeat: int


def design(settings: SweepSettings) -> list[Point]:
    """The distinct points: batch x short and long context, prompt lengths, mixed steps, idle.

    Batches are powers of two up to `max_num_seqs`, which is always among them, and the sizes
    halfway between from 8 on.
    """
    points = [Point(kind=Kind.IDLE)]
    points += [
        Point(kind=Kind.DECODE, num_seqs=batch, context_tokens=context)
        for batch, context in _contexts(settings)
    ]
    longest = min(settings.max_num_batched_tokens, int(LONG_CONTEXT_RATIO * settings.max_model_len))
    lengths = sorted({min(tokens, longest) for tokens in PREFILL_TOKENS})
    points += [Point(kind=Kind.PREFILL, prompt_tokens=tokens) for tokens in lengths]
    points += _mixed(settings, longest)
    return list(dict.fromkeys(points))


def schedule(settings: SweepSettings) -> list[Run]:
    """Every point once per repeat, in an order drawn anew for each repeat; idle first."""
    rng = random.Random(settings.seed)  # noqa: S311  (an order, not a secret)
    points = design(settings)
    idle, rest = points[0], points[1:]
    runs = []
    for repeat in range(1, settings.repeats + 1):
        order = rng.sample(rest, len(rest))
        runs += [Run(point=point, repeat=repeat) for point in (idle, *order)]
    return runs


def batches(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, 12, 16, 24, ... up to and including `max_num_seqs`."""
    powers = [1 << k for k in range(max_num_seqs.bit_length())]
    between = [3 * power // 2 for power in powers if power >= 8]
    return sorted({n for n in (*powers, *between) if n <= max_num_seqs} | {max_num_seqs})


def _contexts(settings: SweepSettings) -> list[tuple[int, int]]:
    """(batch, context) of the decode points: short for every batch size, long for every other one
    from the largest down and for one sequence, deep for the second largest; what the cache holds.
    """
    longest = int(LONG_CONTEXT_RATIO * settings.max_model_len)
    pairs = []
    for rank, batch in enumerate(reversed(batches(settings.max_num_seqs))):
        wanted = [SHORT_CONTEXT_TOKENS]
        if rank % 2 == 0 or batch == 1:
            wanted.append(max(2 * SHORT_CONTEXT_TOKENS, KV_FILL_TOKENS // batch))
        elif rank == 1:
            wanted.append(max(4 * SHORT_CONTEXT_TOKENS, DEEP_KV_FILL_TOKENS // batch))
        room = int(KV_CAPACITY_SHARE * settings.kv_capacity_tokens) // batch - GROWTH_TOKENS
        reached = [min(tokens, longest) for tokens in wanted]
        pairs += [(batch, tokens) for tokens in reached if tokens <= room]
    return pairs


def _mixed(settings: SweepSettings, longest: int) -> list[Point]:
    """Mixed points that fit into the engine: the batch, one prompt running and one waiting."""
    fitting = []
    for batch, prompt in MIXED:
        tokens = min(prompt, longest, settings.max_num_batched_tokens - batch)
        seqs = min(batch, settings.max_num_seqs - 1)
        if seqs >= 1 and tokens >= 1:
            fitting.append(
                Point(
                    kind=Kind.MIXED,
                    num_seqs=seqs,
                    context_tokens=2 * SHORT_CONTEXT_TOKENS,
                    prompt_tokens=tokens,
                )
            )
    return fitting
