"""configs/traces: public traces to download, and loads generated from published figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from policies.core.errors import ConfigError
from policies.sim.arrivals import LengthCdf, Lengths, RateCurve
from policies.sim.length_fits import lognormal, mean_tokens, through_quantiles
from policies.sim.modulation import Bursts
from policies.sim.rate_shapes import diurnal_curve
from serve_app.repository import REPOSITORY
from serve_app.settings import parse_model, read_yaml

TRACE_FOLDER = REPOSITORY / "configs" / "traces"
PRESET_FILE = TRACE_FOLDER / "published.yaml"
CATALOG_FILE = TRACE_FOLDER / "catalog.yaml"
SAMPLE_FILE = TRACE_FOLDER / "sample.csv"


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PresetArrivals(_Facts):
    """Requests per second over so many hours; above 1, `peak_to_trough` makes a wave of a day."""

    mean_per_s: PositiveFloat
    hours: PositiveFloat
    peak_to_trough: float = Field(default=1.0, ge=1.0)
    peak_hour: float = Field(default=14.0, ge=0.0, lt=24.0)
    weekend_ratio: PositiveFloat = 1.0
    first_weekday: int = Field(default=0, ge=0, le=6)


class PresetBursts(_Facts):
    """The fields of `policies.sim.modulation.Bursts`, with its defaults."""

    interarrival_cv: float = 1.0
    rate_cv: float = 0.0
    correlation_s: float = 60.0
    burst_factor: float = 1.0
    burst_s: float = 30.0
    gap_s: float = 600.0


class PresetLengths(_Facts):
    """Tokens: quantiles, scaled to `mean` where given; or mean and median of a log-normal."""

    quantiles: dict[float, float] | None = None
    mean: PositiveFloat | None = None
    median: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.quantiles is None and (self.mean is None or self.median is None):
            raise ValueError("expected quantiles, or mean and median")
        if self.quantiles is not None and self.median is not None:
            raise ValueError("expected quantiles or median, not both")
        return self

    def cdf(self) -> LengthCdf:
        """The distribution. Raises ConfigError."""
        if self.quantiles is None:
            return lognormal(self.mean or math.nan, self.median or math.nan)
        found = through_quantiles(self.quantiles)
        if self.mean is None:
            return found
        ratio = self.mean / mean_tokens(found)
        return LengthCdf(
            shares=found.shares, tokens=tuple(tokens * ratio for tokens in found.tokens)
        )


class PresetSources(_Facts):
    """Where the numbers come from, or that they are assumed."""

    arrivals: str
    bursts: str
    lengths: str


class Preset(_Facts):
    """A load from published figures."""

    what: str
    licence: str
    citation: str
    arrivals: PresetArrivals
    bursts: PresetBursts = PresetBursts()
    prompt_tokens: PresetLengths
    output_tokens: PresetLengths
    sources: PresetSources

    def curve(self) -> RateCurve:
        """The expected rate."""
        arrivals = self.arrivals
        return diurnal_curve(
            arrivals.mean_per_s,
            arrivals.peak_to_trough,
            peak_hour=arrivals.peak_hour,
            days=arrivals.hours / 24,
            weekend_ratio=arrivals.weekend_ratio,
            first_weekday=arrivals.first_weekday,
        )

    def lengths(self) -> Lengths:
        """The length distributions."""
        return Lengths(prompt=self.prompt_tokens.cdf(), output=self.output_tokens.cdf())

    def burstiness(self) -> Bursts:
        """The fluctuations within the curve."""
        return Bursts(**self.bursts.model_dump())


class PublicTrace(_Facts):
    """A trace that others publish. `sha256`: None where not known."""

    what: str
    file: str
    address: str = Field(pattern=r"^https?://")
    licence: str
    citation: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


_Entry = TypeVar("_Entry", bound=_Facts)


def load_presets(path: Path = PRESET_FILE) -> dict[str, Preset]:
    """Presets by name; ConfigError names the file, the key and what is allowed."""
    return _load(path, "presets", Preset)


def load_catalog(path: Path = CATALOG_FILE) -> dict[str, PublicTrace]:
    """Public traces by name; ConfigError names the file, the key and what is allowed."""
    return _load(path, "traces", PublicTrace)


def _load(path: Path, key: str, model: type[_Entry]) -> dict[str, _Entry]:
    data = read_yaml(path)
    entries = data.get(key) if isinstance(data, dict) and len(data) == 1 else None
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: expected one key, {key}, with a mapping of names")
    return {
        str(name): parse_model(model, entry, str(path), f"{key}.{name}")
        for name, entry in entries.items()
    }


def public_trace(name: str) -> PublicTrace:
    """One of the catalogue. ConfigError lists the names that there are."""
    known = load_catalog()
    if name not in known:
        raise ConfigError(f"no public trace {name!r} (allowed: {', '.join(known)})")
    return known[name]
