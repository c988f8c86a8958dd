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
    """Request energy e = a0 tin + a1 tout + a2 tin tout, joules.

    Source of the form: Offline energy-optimal LLM serving, HotCarbon'24 (R^2 .964 to .980). It
    holds at the batch size that it was fitted at, and at no other.
    """

    alpha0_joules_per_prompt_token: float
    alpha1_joules_per_output_token: float
    alpha2_joules_per_token_squared: float

    def request_joules(self, prompt_tokens: float, output_tokens: float) -> float:
        """Joules of one request with these lengths (both >= 0)."""
        return (
            self.alpha0_joules_per_prompt_token * prompt_tokens
            + self.alpha1_joules_per_output_token * output_tokens
            + self.alpha2_joules_per_token_squared * prompt_tokens * output_tokens
        )
