"""What the fleet tick tells the application's ledger: counts, the fleet's size, its decisions."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from policies.core.types import Decision
from policies.model.fitted import FittedModel
from serve_app.decisions.feed import Asked, Changes, FleetNews, FleetRow, feed_of, record_of
from serve_app.settings import EnergySettings

log = logging.getLogger("ray.serve")


class FleetReporter:
    """One deployment's news from inside Ray's controller. No method raises or waits."""

    def __init__(self, energy: EnergySettings, model: FittedModel | None) -> None:
        self._energy, self._model = energy, model
        self._changes = Changes()
        self._decisions: Counter[tuple[str, bool]] = Counter()
        self._errors = 0
        self._told = False

    def decided(self, context: Any, decision: Decision, asked: Asked, decision_s: float) -> None:
        """A tick has decided."""
        self._decisions[decision.reason.value, decision.moves] += 1
        record = None
        if self._energy.decision_log.enabled and self._changes.is_new(
            decision, asked.settings.mode
        ):
            owner = (str(context.deployment_name), None)
            record = record_of(decision, asked, self._energy, self._model, owner)
        self._put(context, record, decision_s)

    def failed(self, context: Any) -> None:
        """A tick has failed, and the replicas are held."""
        self._errors += 1
        self._put(context, None, None)

    def _put(self, context: Any, record: Any, decision_s: float | None) -> None:
        try:
            application = str(context.app_name)
            feed = feed_of(application)
            if feed is None:
                return
            row = FleetRow(
                application=application,
                deployment=str(context.deployment_name),
                replicas=int(context.current_num_replicas),
                requested_replicas=int(context.target_num_replicas),
                min_replicas=int(context.capacity_adjusted_min_replicas),
                max_replicas=int(context.capacity_adjusted_max_replicas),
                decisions=dict(self._decisions),
                decision_s=decision_s,
                errors=self._errors,
            )
            feed.put(
                FleetNews(row=row, record=record, model=self._model, log=self._energy.decision_log)
            )
        except Exception:
            if not self._told:
                self._told = True
                log.warning("the ledger does not hear of the fleet", exc_info=True)
