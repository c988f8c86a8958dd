"""Words that tables, pictures and files share."""

from __future__ import annotations

from policies.core.types import Load
from policies.model.fitted import FittedModel

NOTHING_HOLDS = "nothing holds"


def load_text(load: Load) -> str:
    """A load in a few words."""
    return (
        f"{load.arrival_rate_per_s:.4g} requests/s of {load.prompt_tokens:.4g} + "
        f"{load.output_tokens:.4g} tokens"
    )


def figures(value: float) -> str:
    """Three significant figures, and never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.3g}"


def replicas_text(num_replicas: int, num_devices: int) -> str:
    """Replicas, with the devices of each where it has several."""
    return str(num_replicas) if num_devices == 1 else f"{num_replicas} x {num_devices}"


def kind_of(model: FittedModel) -> str:
    """Where the profile's figures come from: measured, published, a prior."""
    return model.provenance.get("kind", "of unknown provenance")
