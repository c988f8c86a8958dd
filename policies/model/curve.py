"""The mean step of a replica as a function of its batch: one curve for seconds, one for joules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# One number, or many at once: a formula that is written with operators holds for both.
Number = TypeVar("Number", float, NDArray[np.float64])


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCurve:
    """What a step with n running requests costs: base + n per_seq + beyond max(0, n - knee).

    Seconds or joules. `per_prompt` is what one prompt adds to the steps that compute it. A request
    that decodes for `output_tokens` steps brings one prompt, so in the mean each running request
    adds per_prompt / output_tokens to every step. All values finite and >= 0, base > 0.
    """

    base: float
    per_seq: float
    per_prompt: float
    output_tokens: float
    beyond: float = 0.0
    knee: float = 0.0

    @property
    def mean_per_seq(self) -> float:
        """What one running request adds to each step, its prompt spread over its own steps."""
        return self.per_seq + self.per_prompt / self.output_tokens

    def decode(self, num_seqs: Number) -> Number:
        """A step that computes no prompt."""
        return self.base + num_seqs * self.per_seq + self._beyond_knee(num_seqs)

    def mean(self, num_seqs: Number) -> Number:
        """The mean step, with its part of the prompts."""
        return self.base + num_seqs * self.mean_per_seq + self._beyond_knee(num_seqs)

    def _beyond_knee(self, num_seqs: Number) -> Number:
        over = num_seqs - self.knee
        return self.beyond * over * (over > 0.0)
