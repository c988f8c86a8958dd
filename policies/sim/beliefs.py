"""What simulated replicas learn of their own steps, as live ones do, and the policy that knows it.

A policy that acts on a model is handed that model as the steps correct it: in each replica by its
own steps, in the fleet by the median of what the replicas report (`policies.model.online`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from policies.core.control import Policy
from policies.model.bias import CorrectionSettings
from policies.model.fitted import FittedModel
from policies.model.online import (
    MIN_STEPS_S,
    Compared,
    Correction,
    correction_of,
    fleet_correction,
    fresh,
    update,
)
from policies.sim.fleet_state import Fleet

_SETTINGS = CorrectionSettings()


@runtime_checkable
class Correctable(Protocol):
    """A policy whose model live steps may correct."""

    @property
    def believed(self) -> FittedModel | None:
        """The model as it was given; None: there is nothing to correct."""

    def corrected(self, correction: Correction) -> Policy:
        """The same policy on the corrected model."""


class Beliefs:
    """Each replica's correction of the step time. Energy is left as believed: a factor common to
    all of it moves few decisions, and meters lag."""

    def __init__(self, policy: Correctable, model: FittedModel, replicas: int) -> None:
        self.model = model
        self._policy = policy
        self._states = [fresh(model) for _ in range(replicas)]
        self._seen = np.zeros((2, replicas))
        self._kept = fresh(model)
        self._made: dict[Correction, Policy] = {}

    def appeared(self, replica: int) -> None:
        """A new replica goes on with what another one knew, less certain."""
        self._states[replica] = self._kept.resumed()

    def learn(self, fleet: Fleet, replica: int, now_s: float) -> None:
        """From the steps that have ended since the last time."""
        measured_s = float(fleet.busy_s[replica] - self._seen[0, replica])
        modelled_s = float(fleet.believed_s[replica] - self._seen[1, replica])
        if modelled_s < MIN_STEPS_S:
            return
        self._seen[:, replica] = fleet.busy_s[replica], fleet.believed_s[replica]
        window = Compared(measured=measured_s, modelled=modelled_s)
        state = update(self._states[replica], _SETTINGS, now_s, step_time=window)
        self._states[replica] = state
        if state.known:
            self._kept = state

    def correction(self, replicas: Iterable[int]) -> Correction:
        """What these replicas report together."""
        each = [correction_of(self._states[one], _SETTINGS) for one in replicas]
        return each[0] if len(each) == 1 else fleet_correction(each, _SETTINGS)

    def policy(self, correction: Correction) -> Policy:
        """The policy on the model as corrected."""
        if correction not in self._made:
            self._made[correction] = self._policy.corrected(correction)
        return self._made[correction]


def beliefs_of(policy: Policy, truth: FittedModel, replicas: int) -> Beliefs | None:
    """None where there is nothing to learn: the policy has no model, or the truth itself."""
    if not isinstance(policy, Correctable):
        return None
    model = policy.believed
    return None if model is None or model == truth else Beliefs(policy, model, replicas)
