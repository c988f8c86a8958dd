"""What live steps say about a fitted model, and the bounded correction that follows.

A fit holds for the machine, the neighbours and the engine version that it was made with. Live steps
are off by a factor; `policies.model.bias` follows it, once for step time and once for step energy.

One factor each, although prefill and decode can be off by different ones. A second state for steps
with prompts was left out: a meter window holds both kinds of steps, and at a steady load the share
of prompts in it hardly moves, so only the factor of the present mix can be seen and the other one
would follow noise; chunked prefill puts both kinds into one step as well, so that step times tell
little more. Two factors would also bend the model where nothing was seen. A mix that changes shows
as innovations: the filter follows it, and a model for which it never comes to rest is told as
drifting.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from policies.core.errors import ConfigError
from policies.model.bias import Bias, CorrectionSettings, learn, start
from policies.model.fitted import FittedModel
from policies.model.parsing import read_fields

SCHEMA_VERSION = 1
MIN_STEPS_S = 0.5  # modelled seconds of steps in a window of time
GRID = 0.01  # of a ratio's logarithm: finer moves of the model would only churn decisions
MEDIAN_TO_DEVIATION = 1.4826  # a normal's standard deviation over its median |error|


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One window of steps, measured and as the uncorrected model has it; seconds, or joules."""

    measured: float
    modelled: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionState:
    """Everything that is learned about one profile, told by its `fingerprint`."""

    profile: str
    step_time: Bias
    energy: Bias
    schema_version: int = SCHEMA_VERSION

    @property
    def known(self) -> bool:
        """Whether anything is known that a new process could go on with."""
        return self.step_time.known or self.energy.known

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back exactly."""
        return asdict(self)

    @classmethod
    def from_dict(
        cls, data: Any, *, profile: str, source: str = "model correction"
    ) -> CorrectionState:
        """The state from `to_dict`'s data. ConfigError where it is none, or not of `profile`."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source}: document is {data!r}; allowed: a mapping")
        found = read_fields(cls, data, source)
        for key, value, allowed in (
            ("schema_version", found.schema_version, SCHEMA_VERSION),
            ("profile", found.profile, profile),
        ):
            if value != allowed:
                raise ConfigError(f"{source}: {key} is {value}; allowed: {allowed}")
        found.step_time.check(f"{source}: step_time")
        found.energy.check(f"{source}: energy")
        return found

    def resumed(self) -> CorrectionState:
        """What a new process starts with: less certain, all counters and clocks at zero."""
        return replace(self, step_time=self.step_time.resumed(), energy=self.energy.resumed())


def fingerprint(model: FittedModel) -> str:
    """A short name that two profiles share only if every value is the same."""
    text = json.dumps(model.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fresh(model: FittedModel) -> CorrectionState:
    """Nothing learned yet. The profile's own held-out error is the first guess of the noise."""
    seen = model.residuals
    return CorrectionState(
        profile=fingerprint(model),
        step_time=start(MEDIAN_TO_DEVIATION * seen.step_time_median_ratio),
        energy=start(MEDIAN_TO_DEVIATION * seen.energy_median_ratio),
    )


def update(
    state: CorrectionState,
    settings: CorrectionSettings,
    now_s: float,
    *,
    step_time: Compared | None = None,
    energy: Compared | None = None,
) -> CorrectionState:
    """The state after the windows that ended at `now_s` (any clock that does not jump)."""
    return replace(
        state,
        step_time=_learned(state.step_time, settings, now_s, step_time),
        energy=_learned(state.energy, settings, now_s, energy),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """What a model is to be multiplied by, inside the bound; None = not known, taken as 1.

    `at_bound`: the bias is beyond the bound, so the model must not be acted on.
    """

    step_time_ratio: float | None = None
    energy_ratio: float | None = None
    at_bound: bool = False

    @property
    def known(self) -> bool:
        """Whether live steps have said anything."""
        return self.step_time_ratio is not None or self.energy_ratio is not None

    def apply(self, model: FittedModel) -> FittedModel | None:
        """The model to decide with; None at the bound, which leads a policy to its safe point."""
        if self.at_bound:
            return None
        return model.corrected(
            step_time_ratio=_or_one(self.step_time_ratio), energy_ratio=_or_one(self.energy_ratio)
        )

    @property
    def note(self) -> str:
        """What a decision record says about it; empty where nothing is in force."""
        times = (
            f"step time x{_or_one(self.step_time_ratio):.2f}, "
            f"step energy x{_or_one(self.energy_ratio):.2f}"
        )
        if self.at_bound:
            return f"model not acted on: live steps are beyond what may be corrected ({times})"
        if _or_one(self.step_time_ratio) == _or_one(self.energy_ratio) == 1.0:
            return ""
        return f"model corrected by live steps: {times}"


def correction_of(state: CorrectionState, settings: CorrectionSettings) -> Correction:
    """The correction that the state asks for, on a grid of 1 %, within `settings.max_ratio`."""
    return Correction(
        step_time_ratio=_given(state.step_time, settings.max_ratio),
        energy_ratio=_given(state.energy, settings.max_ratio),
        at_bound=state.step_time.bound_windows > 0 or state.energy.bound_windows > 0,
    )


def fleet_correction(replicas: Iterable[Correction], settings: CorrectionSettings) -> Correction:
    """What to plan a fleet with: the median of the replicas that know, in logarithms.

    One replica far from the others moves it no further than their next one. At the bound when more
    than half of them are. Values that are no finite numbers above 0 count as not known.
    """
    known = [one for one in replicas if one.known]
    return median_correction(
        [one.step_time_ratio for one in known],
        [one.energy_ratio for one in known],
        settings,
        at_bound=2 * sum(one.at_bound for one in known) > len(known),
    )


def median_correction(
    step_time_ratios: Iterable[float | None],
    energy_ratios: Iterable[float | None],
    settings: CorrectionSettings,
    *,
    at_bound: bool = False,
) -> Correction:
    """The same of their ratios alone."""
    return Correction(
        step_time_ratio=_median(step_time_ratios, settings.max_ratio),
        energy_ratio=_median(energy_ratios, settings.max_ratio),
        at_bound=at_bound,
    )


def _learned(
    bias: Bias, settings: CorrectionSettings, now_s: float, window: Compared | None
) -> Bias:
    if window is None:
        return bias
    return learn(bias, window.measured, window.modelled, now_s, settings)


def _given(bias: Bias, max_ratio: float) -> float | None:
    if not bias.known:
        return None
    ratio = math.exp(GRID * round(math.log(bias.ratio) / GRID))
    return _bounded(ratio, max_ratio)


def _median(ratios: Iterable[float | None], max_ratio: float) -> float | None:
    known = sorted(one for one in ratios if one is not None and math.isfinite(one) and one > 0.0)
    if not known:
        return None
    middle = (known[(len(known) - 1) // 2], known[len(known) // 2])
    return math.sqrt(_bounded(middle[0], max_ratio) * _bounded(middle[1], max_ratio))


def _bounded(ratio: float, max_ratio: float) -> float:
    return min(max(ratio, 1.0 / max_ratio), max_ratio)


def _or_one(ratio: float | None) -> float:
    return 1.0 if ratio is None else ratio
