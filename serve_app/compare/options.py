"""What a comparison is: which parts, which load, how often."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from policies.core.errors import ConfigError
from policies.core.types import SLO
from serve_app.bench.options import parse_burst


class Part(StrEnum):
    """The comparisons that there are."""

    OVERHEAD = "overhead"  # one replica each, ingress mode, closed loop
    DIRECT = "direct"  # the same in Ray's direct-streaming mode
    DYNAMIC = "dynamic"  # one to two replicas under bursts, open loop


def parse_parts(text: str) -> tuple[Part, ...]:
    """Return the parts of a comma-separated list, in their order. Raises ConfigError."""
    allowed = ", ".join(Part)
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in tuple(Part)]
    if unknown or not wanted:
        raise ConfigError(f"--parts {text!r}: expected one or more of {allowed}")
    return tuple(part for part in Part if part in wanted)


def parse_concurrency(text: str) -> tuple[int, ...]:
    """Return the concurrencies of a comma-separated list. Raises ConfigError."""
    try:
        found = tuple(int(item) for item in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or len(set(found)) < len(found):
        raise ConfigError(
            f"--concurrency {text!r}: expected different whole numbers >= 1, such as 1,8,32"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """One comparison.

    Closed loop: a cell keeps c requests under way, each `prompt_tokens` long (before the chat
    template) with `output_tokens` to make, for as many whole waves of c as last about `cell_s`; the
    number is found once, in the warm-up, and is the same for all. Every system has one cell per
    concurrency in each of `rounds`, in an order that rotates.
    Dynamic: `burst` (BASE:PEAK:PERIOD[:DUTY]) for `duration_s` against each system in turn.
    `stock_targets`: values of `target_ongoing_requests` that stock is run with as well; Ray's own
    default for LLMs is 1e9, with which it never adds a replica.
    """

    config: Path = Path("serve_config.yaml")
    profile: str | None = None
    parts: tuple[Part, ...] = tuple(Part)
    rounds: int = 3
    concurrency: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: int = 64
    output_tokens: int = 64
    cell_s: float = 10.0
    burst: str = "0.2:3:300:0.4"
    duration_s: float = 300.0
    dynamic_prompt_tokens: str = "16"
    dynamic_output_tokens: str = "32"
    stock_targets: tuple[float, ...] = ()
    slo: SLO = field(default_factory=SLO)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--rounds", self.rounds, 1),
            ("--prompt-tokens", self.prompt_tokens, 1),
            ("--output-tokens", self.output_tokens, 2),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise ConfigError(f"{name}: {value}; expected {least} or more")
        for name, number in (("--cell", self.cell_s), ("--duration", self.duration_s)):
            if not 0 < number < math.inf:
                raise ConfigError(f"{name}: {number:g}; expected seconds > 0")
        parse_burst(self.burst)

    def quick(self) -> CompareOptions:
        """Return a smoke run of the same: one round, small cells, one minute of bursts."""
        return CompareOptions(
            config=self.config,
            profile=self.profile,
            parts=self.parts,
            rounds=1,
            concurrency=tuple(c for c in self.concurrency if c <= 8) or self.concurrency[:1],
            prompt_tokens=self.prompt_tokens,
            output_tokens=min(16, self.output_tokens),
            cell_s=1.0,
            burst=self.burst,
            duration_s=min(60.0, self.duration_s),
            dynamic_prompt_tokens=self.dynamic_prompt_tokens,
            dynamic_output_tokens=self.dynamic_output_tokens,
            stock_targets=self.stock_targets,
            slo=self.slo,
            seed=self.seed,
        )
