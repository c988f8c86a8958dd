"""The `energy:` block and everything else a user may write: the only reader of YAML and
environment.

Unknown keys are refused, with the file, the key and what is allowed. Milliseconds and watts as
users write them; `to_control_settings` turns them into the core's base units.
"""

from __future__ import annotations

import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from policies.core.errors import ConfigError
from policies.core.types import SLO, Bounds, ControlSettings, Mode
from policies.model.bias import CorrectionSettings
from serve_app.decisions.settings import DecisionLogSettings
from serve_app.repository import REPOSITORY
from serve_app.request_log.settings import RequestLogSettings
from serve_app.security.settings import SecuritySettings

PROFILE_DIR = Path("configs") / "profiles"
_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _off(value: Any) -> Any:
    """YAML reads a plain `off` as false."""
    return Mode.OFF if value is False else value


_Mode = Annotated[Mode, BeforeValidator(_off)]


class SLOSettings(_Strict):
    """Latency targets. TTFT: arrival at the replica to first token. TPOT: per request,
    (e2e - TTFT) / (output tokens - 1). Both for `percentile` of the arrived requests."""

    ttft_ms: float = Field(default=1000.0, gt=0, description="time to first token, milliseconds")
    tpot_ms: float = Field(default=100.0, gt=0, description="time per output token, milliseconds")
    percentile: float = Field(default=0.99, gt=0.5, lt=1.0, description="0.99 = 99 % of requests")

    def to_slo(self) -> SLO:
        return SLO(ttft_s=self.ttft_ms / 1e3, tpot_s=self.tpot_ms / 1e3, percentile=self.percentile)


class PolicySettings(_Strict):
    """Which policy decides, and how boldly."""

    name: Literal["energy_slo", "static", "ray_default"] = "energy_slo"
    mode: _Mode = Field(
        default=Mode.ACTIVE, description="active | approve | advisory (log only) | off"
    )
    min_saving_ratio: float = Field(default=0.03, ge=0, lt=1)
    slo_headroom_ratio: float = Field(default=0.1, ge=0, lt=1)
    dwell_up_s: float = Field(default=5.0, ge=0)
    dwell_down_s: float = Field(default=30.0, ge=0)
    stale_after_s: float = Field(default=10.0, gt=0)
    cold_start_s: float = Field(
        default=60.0, ge=0, le=86_400, description="how long a new replica takes until it answers"
    )
    num_replicas: int | None = Field(default=None, ge=0, description="static: replicas")
    max_num_active_seqs: int | None = Field(default=None, ge=1, description="static: batch cap")


class EstimatedMeterSettings(_Strict):
    """Power model of the `estimated` meter. Placeholders: set them for your machine."""

    watts_per_busy_core: float = Field(default=4.0, gt=0)
    idle_watts: float = Field(default=1.0, ge=0)


class MeterSettings(_Strict):
    """Where joules come from, in order; what is missing is said, never zero."""

    backends: tuple[Literal["nvml", "rapl", "pyrapl", "estimated"], ...] = (
        "nvml",
        "rapl",
        "estimated",
    )
    powercap_root: Path | None = Field(
        default=None,
        description="where RAPL's zones are, if not in /sys/class/powercap: a mount in a container",
    )
    interval_s: float = Field(default=1.0, ge=0.1, le=10.0)
    estimated: EstimatedMeterSettings = EstimatedMeterSettings()


_NO_KEEPER = "fleet_budget_watts needs an actuator: agent, nvml or zeusd"


class PowerSettings(_Strict):
    """Who sets GPU power limits (docs/power-limits.md). `none`: nobody. `agent`: the node's power
    agent. `nvml`: this process, which must be root. `zeusd`: the daemon of the Zeus project."""

    actuator: Literal["none", "agent", "nvml", "zeusd"] = "none"
    socket: Path | None = Field(
        default=None, description="of the agent or of zeusd, if not where they make it"
    )
    ttl_s: float = Field(
        default=10.0, ge=2.0, le=300.0, description="agent: a replica that is gone so long lapses"
    )
    min_watts: float = Field(default=0.0, ge=0, description="no limit below is chosen")
    max_watts: float | None = Field(default=None, gt=0, description="no limit above is chosen")
    fleet_budget_watts: float | None = Field(
        default=None, gt=0, description="what the limits of all GPUs may sum up to"
    )
    over_budget: Literal["queue", "refuse"] = Field(
        default="queue",
        description="requests whose first token a budget would delay beyond the SLO: wait, or 429",
    )
    lock_clocks: bool = Field(
        default=False, description="where a limit does nothing, lock the clock that it was to give"
    )

    @model_validator(mode="after")
    def _somebody_keeps_the_budget(self) -> Self:
        if self.fleet_budget_watts is not None and self.actuator == "none":
            raise ValueError(_NO_KEEPER)
        return self


class ModelCorrectionSettings(_Strict):
    """How far the steps that a replica runs may correct the profile (docs/model-correction.md)."""

    enabled: bool = Field(default=True, description="false: the profile is taken as it stands")
    max_ratio: float = Field(
        default=2.0, gt=1.0, le=10.0, description="beyond this, or its inverse: the safe point"
    )
    refit_ratio: float = Field(
        default=1.25, gt=1.0, le=10.0, description="a bias beyond this, or its inverse, ..."
    )
    refit_after_s: float = Field(
        default=600.0, ge=0, allow_inf_nan=False, description="... for this long suggests a refit"
    )

    def to_correction_settings(self) -> CorrectionSettings:
        return CorrectionSettings(
            max_ratio=self.max_ratio,
            refit_ratio=self.refit_ratio,
            refit_after_s=self.refit_after_s,
        )


class EnergySettings(_Strict):
    """The `energy:` block of the application's args."""

    slo: SLOSettings = SLOSettings()
    policy: PolicySettings = PolicySettings()
    profile: str | None = Field(
        default=None, description="a profile file, or the name of one in configs/profiles"
    )
    meter: MeterSettings = MeterSettings()
    power: PowerSettings = PowerSettings()
    model_correction: ModelCorrectionSettings = ModelCorrectionSettings()
    request_log: RequestLogSettings = RequestLogSettings()
    decision_log: DecisionLogSettings = DecisionLogSettings()
    security: SecuritySettings = SecuritySettings()

    @property
    def metering_only(self) -> bool:
        return self.policy.mode is Mode.OFF

    def to_control_settings(self, bounds: Bounds) -> ControlSettings:
        policy = self.policy
        return ControlSettings(
            slo=self.slo.to_slo(),
            bounds=bounds,
            mode=policy.mode,
            min_saving_ratio=policy.min_saving_ratio,
            slo_headroom_ratio=policy.slo_headroom_ratio,
            dwell_up_s=policy.dwell_up_s,
            dwell_down_s=policy.dwell_down_s,
            stale_after_s=policy.stale_after_s,
        )


class LiveSLO(_Strict):
    """The part of the SLO that `user_config` changes; absent keys keep their start-time value."""

    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    percentile: float | None = Field(default=None, gt=0.5, lt=1.0)


class LiveSettings(_Strict):
    """`user_config` of the LLM deployment: what may change without restarting an engine.

    `max_num_active_seqs` pins the batch cap; without it the policy moves it. `fleet_budget_watts`
    and `over_budget`: in place of those under `energy.power`.
    """

    slo: LiveSLO = LiveSLO()
    mode: _Mode | None = None
    max_num_active_seqs: int | None = Field(default=None, ge=1)
    fleet_budget_watts: float | None = Field(default=None, gt=0)
    over_budget: Literal["queue", "refuse"] | None = None

    def over(self, base: EnergySettings) -> EnergySettings:
        """The settings in force: `base` with every key of this block that was given."""
        slo = base.slo.model_copy(update=self.slo.model_dump(exclude_none=True))
        given = self.model_dump(exclude_none=True)
        policy: dict[str, Any] = {"mode": self.mode} if self.mode is not None else {}
        keys = ("fleet_budget_watts", "over_budget")
        power: dict[str, Any] = {key: given[key] for key in keys if key in given}
        return base.model_copy(
            update={
                "slo": slo,
                "policy": base.policy.model_copy(update=policy),
                "power": base.power.model_copy(update=power),
            }
        )


def parse_energy(data: Any, source: str) -> EnergySettings:
    """The `energy:` block from plain data. Raises ConfigError naming `source`, key and choices."""
    return parse_model(EnergySettings, data, source, "energy")


def parse_live(data: Any, source: str, base: EnergySettings | None = None) -> LiveSettings:
    """`user_config` from plain data, to go over `base`. Raises ConfigError."""
    live = parse_model(LiveSettings, data, source, "user_config")
    if live.fleet_budget_watts is not None and base is not None and base.power.actuator == "none":
        raise ConfigError(f"{source}: user_config.fleet_budget_watts: {_NO_KEEPER}")
    return live


def parse_model(model: type[_Model], data: Any, source: str, root: str) -> _Model:
    """The model from what a YAML file held; ConfigError names `source`, the key under `root` and
    what is allowed."""
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: {root}: expected a mapping, got {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, source, root)) from None


def _explain(error: ValidationError, model: type[BaseModel], source: str, root: str) -> str:
    """One line for the first fault: file, key, what is wrong, what is allowed."""
    fault = error.errors()[0]
    path = [str(part) for part in fault["loc"]]
    key = ".".join([root, *path])
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(_model_at(model, path[:-1]).model_fields)
        what = f"unknown key (allowed: {allowed})"
    else:
        what = f"{fault['msg']}, got {fault['input']!r}"
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    return f"{source}: {key}: {what}{tail}"


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The nested settings class that holds the key at `path`."""
    for name in path:
        annotation = model.model_fields[name].annotation
        options: tuple[Any, ...] = (annotation,)
        if typing.get_origin(annotation) in (Union, types.UnionType):
            options = typing.get_args(annotation)
        nested = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not nested:
            return model
        model = nested[0]
    return model


def read_yaml(path: Path) -> Any:
    """The data of one YAML file. Raises ConfigError that names the file (and line)."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not readable as YAML: {reason}") from None


def find_profile(name: str) -> Path:
    """The file of a profile given by path (absolute, or relative to the working folder or the
    project) or by bare name. Raises ConfigError that lists the shipped ones."""
    choices = [Path(name), REPOSITORY / name, REPOSITORY / PROFILE_DIR / f"{name}.yaml"]
    for path in choices:
        if path.is_file():
            return path.resolve()
    shipped = sorted(path.stem for path in (REPOSITORY / PROFILE_DIR).glob("*.yaml"))
    raise ConfigError(
        f"energy.profile: no file {name!r} (shipped profiles: {', '.join(shipped) or 'none'})"
    )


def request_log_folder(folder: str | None = None) -> Path:
    """Where request logs go: `folder`, else `jouleserve/requests` in the user's state folder."""
    return _state_folder("requests") if folder is None else Path(folder).expanduser()


def decision_log_folder(folder: str | None = None) -> Path:
    """Where decision logs go: `folder`, else `jouleserve/decisions` in the user's state folder."""
    return _state_folder("decisions") if folder is None else Path(folder).expanduser()


def _state_folder(name: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    root = Path(state) if Path(state).is_absolute() else Path("~/.local/state").expanduser()
    return root / "jouleserve" / name


def api_key() -> str | None:
    """The key that our own commands present to a service."""
    return os.environ.get("JOULESERVE_API_KEY", "").strip() or None


def tenant_secret() -> bytes | None:
    """The key that API keys are hashed with; None: a plain hash."""
    return os.environ.get("JOULESERVE_TENANT_SECRET", "").encode() or None
