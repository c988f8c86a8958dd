"""All runs of a session, played again and compared; what the report and the picture are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from policies.core.errors import ConfigError
from serve_app.fidelity.calibrate import calibrate
from serve_app.fidelity.figures import (
    AIM_RATIO,
    TARGET_RATIO,
    Figures,
    client_figures,
    errors,
    measured_figures,
    median_figures,
    simulated_figures,
    worst,
)
from serve_app.fidelity.host import HostEffects
from serve_app.fidelity.judge import disturbances, mean_slowness, slowness_of
from serve_app.fidelity.observed import Observed
from serve_app.fidelity.service import EngineSizes
from serve_app.fidelity.simulated import Played, play

if TYPE_CHECKING:
    from policies.model.fitted import FittedModel

CALIBRATION = "calibration"


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What was measured in one start of the deployment."""

    runs: tuple[Observed, ...]
    sizes: EngineSizes
    idle_watts: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Session:
        """What `to_dict` made."""
        return cls(
            runs=tuple(Observed.from_dict(one) for one in data["runs"]),
            sizes=EngineSizes(**data["sizes"]),
            idle_watts=data["idle_watts"],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Compared:
    """One run beside its play. `plain`: by the profile as it stands, with the host's constants at
    rest; `reasons`: why it does not count; `slowness`: how slow the machine was in the mean."""

    run: Observed
    played: Played
    measured: Figures
    client: Figures
    simulated: Figures
    plain: Figures
    reasons: tuple[str, ...]
    slowness: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOutcome:
    """One load: medians over the runs that count, and the errors of the medians."""

    name: str
    counted: int
    runs: int
    measured: Figures
    client: Figures
    simulated: Figures
    plain: Figures

    @property
    def errors(self) -> dict[str, float | None]:
        """Of the simulation with the host's constants."""
        return errors(self.simulated, self.measured)

    @property
    def plain_errors(self) -> dict[str, float | None]:
        """Of the profile as it stands."""
        return errors(self.plain, self.measured)

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.counted:
            return "no run counts"
        largest = worst(self.errors)
        if largest is None:
            return "not known"
        if largest <= AIM_RATIO:
            return f"within {AIM_RATIO:.0%}"
        return f"within {TARGET_RATIO:.0%}" if largest <= TARGET_RATIO else f"off by {largest:.0%}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """The comparison. `effects`: the constants of the host, from the calibration runs."""

    effects: HostEffects
    compared: tuple[Compared, ...]
    loads: tuple[LoadOutcome, ...]
    calibrated_on: str

    def apart(self, load: str, figure: str) -> float | None:
        """The largest over the smallest of the measured runs of a load that count, less 1; None for
        fewer than two."""
        seen = [
            value
            for one in self.compared
            if one.run.load == load and not one.reasons
            if (value := getattr(one.measured, figure)) is not None
        ]
        return max(seen) / min(seen) - 1.0 if len(seen) > 1 and min(seen) > 0.0 else None


def compare(session: Session, profile: FittedModel) -> Outcome:
    """Calibrate on the quietest calibration run and play all others.

    ConfigError where there is none, or nothing else.
    """
    reasons = disturbances(session.runs)
    judged = list(zip(session.runs, reasons, slowness_of(session.runs), strict=True))
    calibrations = [one for one in judged if one[0].load == CALIBRATION]
    others = [one for one in judged if one[0].load != CALIBRATION]
    if not calibrations or not others:
        raise ConfigError(f"expected a run named {CALIBRATION} and at least one other")
    run, why, slow = min(calibrations, key=lambda one: (len(one[1]), mean_slowness(one[2])))
    effects = calibrate(run, profile, session.sizes, idle_watts=session.idle_watts, slowness=slow)
    compared = [_compared(*one, profile, session, effects) for one in others]
    names = dict.fromkeys(one.run.load for one in compared)
    told = f"{run.load} {run.round}" + (f", disturbed: {'; '.join(why)}" if why else "")
    return Outcome(
        effects=effects,
        compared=tuple(compared),
        loads=tuple(_of_load(name, compared) for name in names),
        calibrated_on=told,
    )


def _compared(  # noqa: PLR0913, PLR0917
    run: Observed,
    reasons: tuple[str, ...],
    slowness: tuple[float, ...],
    profile: FittedModel,
    session: Session,
    effects: HostEffects,
) -> Compared:
    sizes = session.sizes
    played = play(run.arrivals, run.lives, profile, sizes, effects, slowness=slowness)
    rest = HostEffects(start_watts=effects.start_watts)
    plain = play(run.arrivals, run.lives, profile, sizes, rest)
    return Compared(
        run=run,
        played=played,
        measured=measured_figures(run),
        client=client_figures(run),
        simulated=simulated_figures(run, played),
        plain=simulated_figures(run, plain),
        reasons=reasons,
        slowness=mean_slowness(slowness),
    )


def _of_load(name: str, compared: Sequence[Compared]) -> LoadOutcome:
    mine = [one for one in compared if one.run.load == name]
    good = [one for one in mine if not one.reasons]
    return LoadOutcome(
        name=name,
        counted=len(good),
        runs=len(mine),
        measured=median_figures([one.measured for one in good]),
        client=median_figures([one.client for one in good]),
        simulated=median_figures([one.simulated for one in good]),
        plain=median_figures([one.plain for one in good]),
    )
