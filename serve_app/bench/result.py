"""What a bench run found, as one value and as its JSON document.

The document (`schema_version` 1; seconds, joules, ratios 0..1; null = not known):

* `run`: url, model, endpoint, load, seed, started_at (ISO, UTC), wall_s, interrupted, notes
* `requests`: scheduled, arrived (sent), completed, failed, interrupted, errors {kind: count}
* `latency`: ttft_s, tpot_s, itl_s, e2e_s of completed requests and schedule_lag_s of all sent ones,
  each {mean, p50, p99}; ttft_s: sent to first content chunk; tpot_s: (e2e - TTFT)/(tokens - 1)
* `tokens`: prompt, output (the server's usage, completed requests), prompt_wanted, output_wanted,
  output_per_s; `throughput`: requests_per_s
* `slo`: ttft_s, tpot_s, met, attainment_ratio (of arrived requests; failed ones miss)
* `energy`: source, responses (completed ones that tell their joules), joules, joules_per_request,
  joules_per_output_token, idle_joules, prefill_joules, decode_joules (sums of what they tell)
* `fleet`: null where the server offers no /jouleserve/energy, else meter_joules,
  attributed_joules, idle_joules, unattributed_joules, open_joules, prepaid_joules (growth from
  before the run until the books stood still: `settled`), responses_joules (all responses, failed
  ones too), balance_error_ratio, run_meter_joules (the meter up to the last response, interpolated
  between samples), joules_per_request (that over the completed requests), replicas and
  max_num_active_seqs {min, max, changes}, replica_seconds, samples [{time_s, num_replicas,
  num_running, max_num_active_seqs}]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from policies.core.types import SLO
from serve_app.bench.fleet import SUMS, FleetSample, changes, replica_seconds, spent
from serve_app.bench.records import INTERRUPTED, RequestRecord

SCHEMA_VERSION = 1
Section = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """The circumstances of a run. `wall_s`: from its start to the end of its last response."""

    url: str
    model: str
    endpoint: str
    load: str
    seed: int
    started_at: str
    wall_s: float
    interrupted: bool
    scheduled: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """A finished run: its facts, targets, records and fleet samples, and what follows from them."""

    facts: RunFacts
    slo: SLO
    records: tuple[RequestRecord, ...]
    fleet_samples: tuple[FleetSample, ...]
    fleet_settled: bool

    @property
    def completed(self) -> list[RequestRecord]:
        """The requests whose response came whole."""
        return [record for record in self.records if record.completed]

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by kind, most frequent first; interrupted ones are no failures."""
        kinds = (record.error for record in self.records)
        return dict(Counter(k for k in kinds if k and k != INTERRUPTED).most_common())

    def to_dict(self) -> Section:
        """Return the JSON document described at the top of this file."""
        facts = asdict(self.facts)
        scheduled = facts.pop("scheduled")
        return {
            "schema_version": SCHEMA_VERSION,
            "run": {**facts, "notes": list(self.facts.notes)},
            "requests": {"scheduled": scheduled, **self._requests()},
            "latency": self._latency(),
            "tokens": self._tokens(),
            "throughput": {"requests_per_s": _ratio(len(self.completed), self.facts.wall_s)},
            "slo": self._slo(),
            "energy": self._energy(),
            "fleet": self._fleet(),
        }

    def _arrived(self) -> list[RequestRecord]:
        return [record for record in self.records if record.error != INTERRUPTED]

    def _requests(self) -> Section:
        return {
            "arrived": len(self._arrived()),
            "completed": len(self.completed),
            "failed": sum(self.errors.values()),
            "interrupted": len(self.records) - len(self._arrived()),
            "errors": self.errors,
        }

    def _latency(self) -> Section:
        done = self.completed
        return {
            "ttft_s": _distribution(r.ttft_s for r in done),
            "tpot_s": _distribution(r.tpot_s for r in done),
            "itl_s": _distribution(gap for r in done for gap in r.itl_s),
            "e2e_s": _distribution(r.e2e_s for r in done),
            "schedule_lag_s": _distribution(r.sent_s - r.scheduled_s for r in self.records),
        }

    def _tokens(self) -> Section:
        done = self.completed
        output = sum(r.output_tokens or 0 for r in done)
        return {
            "prompt": _sum_or_none(r.prompt_tokens for r in done),
            "output": output,
            "prompt_wanted": sum(r.wanted_prompt_tokens for r in done),
            "output_wanted": sum(r.wanted_output_tokens for r in done),
            "output_per_s": _ratio(output, self.facts.wall_s),
        }

    def _slo(self) -> Section:
        arrived = self._arrived()
        met = sum(1 for record in arrived if record.meets(self.slo))
        return {
            "ttft_s": self.slo.ttft_s,
            "tpot_s": self.slo.tpot_s,
            "met": met,
            "attainment_ratio": _ratio(met, len(arrived)),
        }

    def _energy(self) -> Section:
        told = [r for r in self.completed if r.joules is not None]
        energies = [r.energy for r in told if r.energy is not None]
        joules = _sum_or_none(r.joules for r in told)
        return {
            "source": "+".join(sorted({e.source for e in energies})) or "unavailable",
            "responses": len(told),
            "joules": joules,
            "joules_per_request": _ratio(joules, len(told)),
            "joules_per_output_token": _ratio(joules, sum(r.output_tokens or 0 for r in told)),
            "idle_joules": _sum_or_none(e.idle_joules for e in energies),
            "prefill_joules": _sum_or_none(e.prefill_joules for e in energies),
            "decode_joules": _sum_or_none(e.decode_joules for e in energies),
        }

    def _run_meter_joules(self) -> float | None:
        """Return the meter's growth up to the end of the last response, not of the settling."""
        if spent(list(self.fleet_samples), "meter") is None:
            return None
        known = [(s.time_s, m) for s in self.fleet_samples if (m := s.joules["meter"]) is not None]
        times, meters = zip(*known, strict=True)
        return float(np.interp(self.facts.wall_s, times, meters)) - float(meters[0])

    def _fleet(self) -> Section | None:
        samples = list(self.fleet_samples)
        if len(samples) < 2:
            return None
        grown = {name: spent(samples, name) for name in SUMS}
        responses = _sum_or_none(record.joules for record in self.records)
        caps = [[c for c in s.max_num_active_seqs.values() if c is not None] for s in samples]
        return {
            **{f"{name}_joules": value for name, value in grown.items()},
            "responses_joules": responses,
            "balance_error_ratio": balance_error_ratio(grown, responses),
            "settled": self.fleet_settled,
            "run_meter_joules": self._run_meter_joules(),
            "joules_per_request": _ratio(self._run_meter_joules(), len(self.completed)),
            "replicas": changes([s.num_replicas for s in samples]),
            "max_num_active_seqs": {
                "min": min((min(c) for c in caps if c), default=None),
                "max": max((max(c) for c in caps if c), default=None),
                "changes": sum(_cap_changes(samples, name) for name in _replicas_of(samples)),
            },
            "replica_seconds": replica_seconds(samples, self.facts.wall_s),
            "samples": [
                {
                    "time_s": sample.time_s,
                    "num_replicas": sample.num_replicas,
                    "num_running": sample.num_running,
                    "max_num_active_seqs": sample.max_num_active_seqs,
                }
                for sample in samples
            ],
        }


def balance_error_ratio(grown: dict[str, float | None], responses: float | None) -> float | None:
    """Return |responses + idle + unattributed + open - prepaid - meter| / meter.

    What the responses told their clients, against what the meter counted. None where the meter or
    one of the sums is not known; a server without `open` and `prepaid` has nothing in them.
    """
    meter, idle, unattributed = grown["meter"], grown["idle"], grown["unattributed"]
    if not meter or idle is None or unattributed is None or responses is None:
        return None
    level = (grown["open"] or 0.0) - (grown["prepaid"] or 0.0)
    return abs(responses + idle + unattributed + level - meter) / meter


def _replicas_of(samples: list[FleetSample]) -> set[str]:
    return {name for sample in samples for name in sample.max_num_active_seqs}


def _cap_changes(samples: list[FleetSample], replica: str) -> int:
    caps = (sample.max_num_active_seqs.get(replica) for sample in samples)
    return int(changes([cap for cap in caps if cap is not None])["changes"] or 0)


def _distribution(values: Iterable[float | None]) -> dict[str, float | None]:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not known.size:
        return {"mean": None, "p50": None, "p99": None}
    p50, p99 = np.percentile(known, (50, 99))
    return {"mean": float(known.mean()), "p50": float(p50), "p99": float(p99)}


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None or whole <= 0 else part / whole


def _sum_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
