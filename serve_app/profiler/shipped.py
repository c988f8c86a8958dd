"""The table of shipped profiles in the README: `python -m serve_app.profiler.shipped` writes it,
`--check` fails when it is out of date."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import yaml

from policies.model.fitted import FittedModel
from serve_app.repository import REPOSITORY
from serve_app.sections import read_section, write_section

if TYPE_CHECKING:
    from pathlib import Path

README = REPOSITORY / "README.md"
PROFILES = REPOSITORY / "configs" / "profiles"
SECTION = "profiles"
BATCHES = (8, 64)
CONTEXT_TOKENS = 256


def table(folder: Path) -> str:
    """One row per profile: where it comes from, its errors, and what a token costs by it."""
    models = [_load(path) for path in sorted(folder.glob("*.yaml"))]
    sizes = [f"step / J per token at {batch}" for batch in BATCHES]
    head = ["profile", "device", "from", "step time", "energy", "acted on", *sizes]
    lines = [
        "Errors: on points that the fit has not seen; of the step time the median and what 95 of",
        "100 stay within, of the energy the median. Costs, by the fitted model: one decode step of",
        f"that many sequences with {CONTEXT_TOKENS} tokens each.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(_row(model))} |" for model in models),
        "",
        "`make docs` writes this table from [configs/profiles](configs/profiles).",
    ]
    return "\n".join(lines)


def _row(model: FittedModel) -> list[str]:
    seen = model.residuals
    kind = model.provenance.get("kind", "unknown")
    date = model.provenance.get("date") or model.provenance.get("started", "")[:10]
    return [
        model.name,
        f"{model.power.num_devices}x {model.device}"
        if model.power.num_devices > 1 and not model.device[0].isdigit()
        else model.device,
        f"{kind}, {date}" + (", joules estimated" if _estimated(model) else ""),
        f"{seen.step_time_median_ratio:.1%} / {seen.step_time_p95_ratio:.1%}",
        f"{seen.energy_median_ratio:.1%}",
        "yes" if model.trusted else "no",
        *(_cost(model, batch) for batch in BATCHES),
    ]


def _estimated(model: FittedModel) -> bool:
    return model.provenance.get("energy", "").startswith("estimated")


def _cost(model: FittedModel, batch: int) -> str:
    kv_tokens = float(batch * CONTEXT_TOKENS)
    step_s = model.latency.step_time_s(batch, kv_tokens, 0.0)
    joules = model.power.step_joules(batch, kv_tokens, 0.0, 0.0) / batch
    return f"{1e3 * step_s:.3g} ms / {joules:.3g}"


def _load(path: Path) -> FittedModel:
    return FittedModel.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def main() -> int:
    """0: written, or up to date; 1: out of date."""
    if "--check" in sys.argv[1:]:
        if read_section(README, SECTION) == table(PROFILES):
            return 0
        print("README.md: the table of profiles is out of date: run `make docs`", file=sys.stderr)
        return 1
    write_section(README, SECTION, table(PROFILES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
