"""Joules of a request by its lengths: the closed form for planning and for bins of a trace."""

from __future__ import annotations

from dataclasses import dataclass

from policies.core.errors import OutOfRange


def length_bin(tokens: int) -> int:
    """The power of two that bounds `tokens` from above: 1, 2, 4, 8, ... Bin b holds (b/2, b].

    0 tokens fall into bin 1; a negative count is OutOfRange.
    """
    if tokens < 0:
        raise OutOfRange(f"{tokens} tokens; allowed: a whole number from 0")
    return 1 << max(tokens - 1, 0).bit_length()


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadModel:
    """Request energy e = a0 tin + a1 tout + a2 tin tout + a1b tout / batch, joules.

    Source of the first three terms: Offline energy-optimal LLM serving, HotCarbon'24 (R^2 .964 to
    .980). With continuous batching a step reads the weights once for all of its sequences: a1b are
    the joules per output token that `batch` requests share. With a1b = 0 the form holds at the
    batch size that it was fitted at, and at no other. A fit may give a term of either sign.
    """

    alpha0_joules_per_prompt_token: float
    alpha1_joules_per_output_token: float
    alpha2_joules_per_token_squared: float
    alpha1b_shared_joules_per_output_token: float = 0.0

    def request_joules(
        self, prompt_tokens: float, output_tokens: float, batch: float = 1.0
    ) -> float:
        """Joules of one request with these lengths (both >= 0) among `batch` running ones, itself
        included. A batch below 1 is OutOfRange."""
        if not batch >= 1.0:
            raise OutOfRange(f"batch is {batch}; allowed: a number from 1")
        return (
            self.alpha0_joules_per_prompt_token * prompt_tokens
            + self.alpha1_joules_per_output_token * output_tokens
            + self.alpha2_joules_per_token_squared * prompt_tokens * output_tokens
            + self.alpha1b_shared_joules_per_output_token * output_tokens / batch
        )
