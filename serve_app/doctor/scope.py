"""What is examined: the environment, the places where sensors are looked for, the Serve file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from serve_app.meters.powercap import POWERCAP_ROOT
from serve_app.settings import EnergySettings

EngineKind = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """One examination.

    `file`: the Serve config file, None where there is none to look at. `data` and `energy`: what it
    says, `energy` None where it has no valid `energy:` block. `root`: the file system that /proc,
    /run and /dev are looked up in. `engine`: what the installed vLLM runs on, None without vLLM.
    """

    file: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    energy: EnergySettings | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    powercap_root: Path = POWERCAP_ROOT
    root: Path = Path("/")
    engine: EngineKind | None = None

    def arguments(self) -> list[Mapping[str, Any]]:
        """The `args` of the applications in the file."""
        return mappings([one.get("args") for one in mappings(self.data.get("applications"))])

    def llm_configs(self) -> list[Mapping[str, Any]]:
        """Ray's LLMConfig blocks in the file."""
        return [block for one in self.arguments() for block in mappings(one.get("llm_configs"))]

    def wants_gpu(self) -> bool:
        """Whether a GPU is meant to do the work: as the file says, else as vLLM was built."""
        blocks = self.llm_configs()
        kinds = [mapping(block.get("accelerator_config")).get("kind") for block in blocks]
        return any(kind != "cpu" for kind in kinds) if kinds else self.engine == "gpu"


def mapping(value: Any) -> Mapping[str, Any]:
    """Return what a file has at a place where a mapping belongs; empty if it is none."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings in what a file has at a place where a list of them belongs."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
