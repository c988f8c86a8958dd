"""Another policy's replicas under one fixed power limit: the best that a limit does standing still.

The limit is set on every replica for the whole run, with the full batch; which one is best is found
in hindsight, by running them all. Source: the static per-deployment limits of Dynamo's Power Agent
(ai-dynamo/dynamo, #9682 and #12012), with the limit chosen as well as it can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.core.control import Policy
from policies.core.errors import ConfigError
from policies.core.observe import View
from policies.core.types import (
    Reason,
)
from policies.peer_parts import (
    Ask,
    Result,
    Wish,
    WishingPeer,
    full_point,
    limit_at_least,
    with_replicas_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedLimit(WishingPeer):
    """`inner` chooses the replicas. A limit that is not allowed becomes the next higher one that
    is; above all of them: full power."""

    NAME: ClassVar[str] = "fixed_limit"

    inner: Policy
    power_limit_watts: float

    def __post_init__(self) -> None:
        if not self.power_limit_watts > 0.0:
            raise ConfigError(
                f"policy fixed_limit: power_limit_watts is {self.power_limit_watts}; "
                "allowed: above 0"
            )

    def _answer(self, ask: Ask) -> Result:
        return with_replicas_of(self.NAME, ask, self.inner, self._wish)

    def _wish(self, ask: Ask, view: View) -> Wish:
        limit = limit_at_least(self.power_limit_watts, ask.bounds)
        return Wish(point=full_point(view.present, ask.bounds, limit), reason=Reason.STATIC)
