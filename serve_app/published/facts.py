"""configs/published.yaml, checked: which published rows become profiles, and facts beside them."""

from __future__ import annotations

import csv
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from policies.core.errors import ConfigError
from serve_app.repository import REPOSITORY
from serve_app.settings import parse_model, read_yaml

FACTS_FILE = REPOSITORY / "configs" / "published.yaml"
_IDLE_PHASE = "phase1_0gb"  # a CUDA context and an empty memory; how full it is changes nothing


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GpuFacts(_Facts):
    """A GPU's data sheet. `device`: its NVML name."""

    device: str
    power_limit_watts: PositiveFloat
    memory_bytes_per_s: PositiveFloat
    dense_flops_per_s: PositiveFloat
    source: str


class ModelFacts(_Facts):
    """A model's shape. `name`: what its profile is called."""

    name: str
    params_b: PositiveFloat
    layers: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    max_model_len: PositiveInt


class LatencyFacts(_Facts):
    """Where a folder of latency tables was measured."""

    folder: str
    gpu: str
    model: str


class PowerLimitFacts(_Facts):
    """Compute-bound speed under a power limit: watts → share of the speed without one."""

    source: str
    gpu: str
    speed_ratio: dict[PositiveFloat, PositiveFloat] = Field(min_length=4)


class Sources(_Facts):
    """Name and licence of each set of tables."""

    energy: str
    idle: str
    latency: str


class Facts(_Facts):
    """The whole file."""

    gpus: dict[str, GpuFacts]
    models: dict[str, ModelFacts]
    latency: list[LatencyFacts]
    task: str
    power_limit: PowerLimitFacts
    sources: Sources


def load_facts(path: Path = FACTS_FILE) -> Facts:
    """The file; ConfigError names it, the key and what is allowed."""
    return parse_model(Facts, read_yaml(path), str(path), "published")


def idle_watts(path: Path) -> dict[str, float]:
    """Idle draw per GPU with a CUDA context, by NVML name, from the idle table."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {row["gpu"]: float(row["p"]) for row in rows if row["phase"] == _IDLE_PHASE}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: expected columns gpu, phase, p (watts): {error}") from None
