"""LinUCB with one linear model per arm: a contextual bandit.

Source: Li et al., "A Contextual-Bandit Approach to Personalized News Article Recommendation",
WWW 2010, algorithm 1 (disjoint models): A_a = l I + sum x x', b_a = sum r x, theta_a = A_a^-1 b_a,
score theta_a' x + alpha sqrt(x' A_a^-1 x). The schedule is AGFT's (SusCom-Lab/AGFT,
`src/contextual_bandit.py`, `config/config.yaml`): each arm once first, from the first to the last;
alpha = max(10 e^(-0.02 rounds), 0.1); l = 5. Deterministic: of equal scores the first arm wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FIRST_ALPHA, LAST_ALPHA, ALPHA_DECAY = 10.0, 0.1, 0.02
REGULARIZATION = 5.0

Floats = NDArray[np.float64]


class LinUcb:
    """`arms` arms over contexts of `features` numbers."""

    def __init__(self, arms: int, features: int) -> None:
        self._inverse = np.stack([np.eye(features) / REGULARIZATION] * arms)
        self._sums = np.zeros((arms, features))
        self._theta = np.zeros((arms, features))
        self._tried = 0
        self.counts = np.zeros(arms, dtype=np.int64)
        self.rewards = np.zeros(arms)

    @property
    def rounds(self) -> int:
        """Rewards seen so far."""
        return int(self.counts.sum())

    def scores(self, context: Floats) -> Floats:
        """The upper bound of each arm's reward."""
        alpha = max(FIRST_ALPHA * float(np.exp(-ALPHA_DECAY * self.rounds)), LAST_ALPHA)
        spread = np.einsum("i,aij,j->a", context, self._inverse, context)
        return np.asarray(self._theta @ context + alpha * np.sqrt(np.maximum(spread, 0.0)))

    def choose(self, context: Floats, allowed: Sequence[int]) -> int:
        """An arm of `allowed` (not empty): the next untried one, else the one with the best score.
        ValueError where none is allowed."""
        while self._tried < len(self.counts):
            self._tried += 1
            if self._tried - 1 in allowed:
                return self._tried - 1
        scores = self.scores(context)
        return max(allowed, key=lambda arm: float(scores[arm]))

    def learn(self, arm: int, context: Floats, reward: float) -> None:
        """Take in the reward of an arm in a context, by the Sherman-Morrison formula."""
        moved = self._inverse[arm] @ context
        self._inverse[arm] -= np.outer(moved, moved) / (1.0 + float(context @ moved))
        self._sums[arm] += reward * context
        self._theta[arm] = self._inverse[arm] @ self._sums[arm]
        self.counts[arm] += 1
        self.rewards[arm] += reward


class Standardizer:
    """Features with their running mean and spread taken out (Welford), cut at 3 spreads, and a
    constant 1 in front, which AGFT lacks and without which no arm has a mean of its own."""

    def __init__(self, features: int) -> None:
        self._count = 0
        self._mean, self._squares = np.zeros(features), np.zeros(features)

    def __call__(self, values: Sequence[float]) -> Floats:
        """The context of these values, which are taken in too."""
        found = np.asarray(values, dtype=np.float64)
        self._count += 1
        delta = found - self._mean
        self._mean += delta / self._count
        self._squares += delta * (found - self._mean)
        spread = np.sqrt(self._squares / max(self._count - 1, 1)) + 1e-8
        scaled = np.clip((found - self._mean) / spread, -3.0, 3.0)
        return np.concatenate(([1.0], scaled))
