"""The figures of a group of requests. Every ratio has the same requests above and below its line.

    J/request       = joules / completed requests
    J/output token  = joules / output tokens      joules of aborted and failed requests included:
    J/prompt token  = prefill joules / prompt tokens      what they used, the delivered ones paid

All four sums run over the requests whose energy is known. A request without energy is counted and
named, never taken as 0 J. The joules are those attributed to requests; what a replica draws while
it waits is in its metrics and at /jouleserve/energy.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from policies.core.slo import meets
from policies.core.types import SLO
from serve_app.report.tariff import Tariff
from serve_app.request_log.row import Row

OUTCOMES = ("completed", "aborted", "failed", "rejected")


@dataclass(slots=True)
class Figures:
    """Sums over requests. `known_...`: over those whose energy is known."""

    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    slo_met: int = 0
    known_requests: int = 0
    known_completed: int = 0
    known_prompt_tokens: int = 0
    known_output_tokens: int = 0
    joules: float = 0.0
    prefill_joules: float = 0.0
    decode_joules: float = 0.0
    idle_joules: float = 0.0
    device_joules: dict[str, float] = field(default_factory=dict)
    coverage_sum: float = 0.0
    grams: float = 0.0
    grams_joules: float = 0.0  # the joules that `grams` were reckoned for
    sources: set[str] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)

    def add(self, row: Row, grams: float | None, slo: SLO | None) -> None:
        """Count one request; `grams` of CO2, None where the intensity is not known."""
        self.requests += 1
        self.outcomes[row.outcome] += 1
        self.prompt_tokens += row.prompt_tokens or 0
        self.output_tokens += row.output_tokens or 0
        self.cached_tokens += row.cached_tokens or 0
        if slo is not None and row.outcome == "completed":
            self.slo_met += meets(slo, row.ttft_s, row.tpot_s)
        if row.joules is None:
            return
        self.known_requests += 1
        self.known_completed += row.outcome == "completed"
        self.known_prompt_tokens += row.prompt_tokens or 0
        self.known_output_tokens += row.output_tokens or 0
        self.joules += row.joules
        self.prefill_joules += row.prefill_joules or 0.0
        self.decode_joules += row.decode_joules or 0.0
        self.idle_joules += row.idle_joules or 0.0
        for kind, joules in row.device_joules.items():
            self.device_joules[kind] = self.device_joules.get(kind, 0.0) + joules
        self.coverage_sum += row.coverage_ratio or 0.0
        self.sources.add(row.source)
        self.methods.add(row.method or "unknown")
        if grams is not None:
            self.grams += grams
            self.grams_joules += row.joules

    def merge(self, other: Figures) -> None:
        """Add another group to this one."""
        for name in self.__dataclass_fields__:
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter | set):
                mine.update(more)
            elif isinstance(mine, dict):
                for kind, joules in more.items():
                    mine[kind] = mine.get(kind, 0.0) + joules
            else:
                setattr(self, name, mine + more)

    # ---- ratios; None where they are not known

    @property
    def meterable(self) -> int:
        """Requests whose energy there is to know: a rejected one did no work."""
        return self.requests - self.outcomes["rejected"]

    @property
    def known_ratio(self) -> float | None:
        """The share of requests whose energy is known."""
        return _ratio(min(self.known_requests, self.meterable), self.meterable)

    @property
    def coverage_ratio(self) -> float | None:
        """Of the requests whose energy is known: the share of their work that a meter saw."""
        return _ratio(self.coverage_sum, self.known_requests)

    @property
    def attainment_ratio(self) -> float | None:
        return _ratio(self.slo_met, self.requests)

    @property
    def joules_per_request(self) -> float | None:
        return _ratio(self.joules, self.known_completed)

    @property
    def joules_per_output_token(self) -> float | None:
        return _ratio(self.joules, self.known_output_tokens)

    @property
    def joules_per_prompt_token(self) -> float | None:
        return _ratio(self.prefill_joules, self.known_prompt_tokens)

    def to_dict(self, tariff: Tariff, slo: SLO | None) -> dict[str, Any]:
        """The group as one JSON object; null is "not known"."""
        known = self.known_requests > 0
        found: dict[str, Any] = {
            "requests": self.requests,
            **{name: self.outcomes[name] for name in OUTCOMES},
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "cached_tokens": self.cached_tokens,
            "joules": self.joules if known else None,
            "prefill_joules": self.prefill_joules if known else None,
            "decode_joules": self.decode_joules if known else None,
            "idle_joules": self.idle_joules if known else None,
            "device_joules": dict(sorted(self.device_joules.items())),
            "joules_per_request": self.joules_per_request,
            "joules_per_output_token": self.joules_per_output_token,
            "joules_per_prompt_token": self.joules_per_prompt_token,
            "energy_known_requests": self.known_requests,
            "energy_known_ratio": self.known_ratio,
            "coverage_ratio": self.coverage_ratio,
            "sources": sorted(self.sources),
            "methods": sorted(self.methods),
        }
        if slo is not None:
            found["slo_attainment_ratio"] = self.attainment_ratio
        return {**found, **self.costs(tariff)}

    def costs(self, tariff: Tariff) -> dict[str, float | None]:
        """Money and grams, for what the tariff knows."""
        found: dict[str, float | None] = {}
        known = self.known_requests > 0
        if tariff.price_per_kwh is not None:
            per_joule = tariff.price_per_joule
            found["cost"] = self.joules * per_joule if known else None
            found["cost_per_request"] = _times(self.joules_per_request, per_joule)
            found["cost_per_million_output_tokens"] = _times(
                self.joules_per_output_token, per_joule * 1e6
            )
        if tariff.intensity is not None:
            mean = _ratio(self.grams, self.grams_joules)
            found["gco2"] = None if mean is None else self.grams
            found["gco2_known_ratio"] = _ratio(self.grams_joules, self.joules)
            found["gco2_per_request"] = _times(self.joules_per_request, mean)
            found["gco2_per_million_output_tokens"] = _times(
                self.joules_per_output_token, None if mean is None else mean * 1e6
            )
        return found


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor
