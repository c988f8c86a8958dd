"""What the sweep asks of an engine. Two answer: vLLM (`engine_run`) and torch (`torch_engine`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from serve_app.profiler.steps import Step


class EngineLimits(Protocol):
    """The settings of an engine, as far as they bound a request."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt and output together, tokens."""


class Engine(Protocol):
    """A running engine that computes random prompts and records its steps. Use it in `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def settings(self) -> EngineLimits:
        """How it was started."""

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that one step computes at most."""

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that its KV cache holds."""

    @property
    def in_background(self) -> bool:
        """Whether steps run while nobody waits for them; else one runs within each `step`."""

    @property
    def steps(self) -> list[Step]:
        """All steps since the last `forget`."""

    @property
    def unfinished(self) -> bool:
        """Whether any request has not been answered."""

    def prepare(self, num_seqs: int, context_tokens: int, prompt_tokens: int) -> None:
        """Get ready for a batch, so that nothing of it waits for what is done once: `num_seqs`
        sequences that decode after prompts of `context_tokens`, and prompts of `prompt_tokens`
        beside them (0: none)."""

    def add(self, prompt_tokens: int, output_tokens: int) -> None:
        """Queue one request of random tokens, which ends after exactly `output_tokens`."""

    def step(self) -> int:
        """Wait for one step; returns how many requests it finished."""

    def quiesce(self) -> None:
        """Drop all requests and return when no step runs."""

    def forget(self) -> None:
        """Drop the steps recorded so far."""

    def facts(self) -> dict[str, Any]:
        """What the engine is and how it runs, as plain data for a manifest."""
