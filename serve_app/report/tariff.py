"""What a joule costs in money and in CO2.

    $/Mtok = J/token x 1e6 / 3.6e6 J/kWh x $/kWh = J/token x $/kWh / 3.6

PUE (power usage effectiveness, ISO/IEC 30134-2: all energy of a data centre over that of its IT
equipment, >= 1) multiplies both.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from policies.core.errors import ConfigError

_HEADER = ["time", "gCO2_per_kWh"]
_JOULES_PER_KWH = 3.6e6
_SLACK = 1.01  # a clock change or a late sample is no gap


@dataclass(frozen=True, slots=True)
class Intensity:
    """Carbon intensity over time, gCO2/kWh. Each value holds from its time to the next, but not
    longer than `hold_s`, the usual distance: what is beyond is a gap, where nothing is known."""

    times_s: tuple[float, ...]
    grams_per_kwh: tuple[float, ...]
    hold_s: float = math.inf

    @staticmethod
    def constant(grams_per_kwh: float) -> Intensity:
        """The same at all times."""
        return Intensity((-math.inf,), (grams_per_kwh,))

    def at(self, time: datetime) -> float | None:
        """The value in force; None in a gap."""
        time_s = time.timestamp()
        index = bisect_right(self.times_s, time_s) - 1
        if index < 0 or time_s - self.times_s[index] > self.hold_s * _SLACK:
            return None
        return self.grams_per_kwh[index]

    def gap_at(self, time: datetime) -> str:
        """Name the gap around a time where nothing is known."""
        index = bisect_right(self.times_s, time.timestamp())
        if index == 0:
            return f"before {_text(self.times_s[0])}"
        begin = _text(self.times_s[index - 1] + self.hold_s)
        if index == len(self.times_s):
            return f"after {begin}"
        return f"{begin} to {_text(self.times_s[index])}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tariff:
    """Prices that apply; None is not asked for."""

    price_per_kwh: float | None = None
    currency: str = "$"
    intensity: Intensity | None = None
    pue: float = 1.0

    @property
    def price_per_joule(self) -> float:
        """Money per joule of the devices, the data centre's overhead included."""
        return (self.price_per_kwh or 0.0) * self.pue / _JOULES_PER_KWH

    def grams(self, joules: float | None, time: datetime) -> float | None:
        """CO2 of joules drawn at a time; None where either is not known."""
        if joules is None or self.intensity is None:
            return None
        per_kwh = self.intensity.at(time)
        return None if per_kwh is None else joules * self.pue * per_kwh / _JOULES_PER_KWH


@dataclass(slots=True)
class Gaps:
    """Joules without a known intensity, by the gap that they fell into."""

    joules: dict[str, float] = field(default_factory=dict)

    def add(self, intensity: Intensity, time: datetime, joules: float) -> None:
        name = intensity.gap_at(time)
        self.joules[name] = self.joules.get(name, 0.0) + joules


def read_intensity(given: str) -> Intensity:
    """The intensity of a number, or of a CSV file `time,gCO2_per_kWh` (ISO 8601 times; without a
    zone they are UTC). Raises ConfigError that names the line."""
    try:
        value = float(given)
    except ValueError:
        return _read_csv(Path(given))
    if not 0.0 <= value < math.inf:
        raise ConfigError(f"--gco2-per-kwh {given}: allowed: a number >= 0, or a CSV file")
    return Intensity.constant(value)


def _read_csv(path: Path) -> Intensity:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, and not a number of gCO2/kWh") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not readable as CSV: {error}") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    if header != _HEADER:
        found = ",".join(header) or "an empty file"
        raise ConfigError(f"{path}:1: expected the header {','.join(_HEADER)}, found {found}")
    times: list[float] = []
    values: list[float] = []
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        time_s, value = _sample(f"{path}:{number}", cells)
        if times and time_s <= times[-1]:
            raise ConfigError(f"{path}:{number}: {cells[0]}: not later than the line before")
        times.append(time_s)
        values.append(value)
    if len(times) < 2:
        raise ConfigError(
            f"{path}: {len(times)} values; allowed: two or more (for one, give the number itself)"
        )
    return Intensity(tuple(times), tuple(values), median(b - a for a, b in pairwise(times)))


def _sample(where: str, cells: list[str]) -> tuple[float, float]:
    if len(cells) != len(_HEADER):
        raise ConfigError(f"{where}: {len(cells)} columns; expected {','.join(_HEADER)}")
    try:
        time = datetime.fromisoformat(cells[0].strip())
    except ValueError:
        raise ConfigError(f"{where}: time {cells[0]!r}: not an ISO 8601 time") from None
    try:
        value = float(cells[1])
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise ConfigError(f"{where}: gCO2_per_kWh {cells[1]!r}: allowed: a number >= 0")
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp(), value


def _text(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
