"""A fit of all samples of a folder: the model, and its response to power limits where one was
swept. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from policies.core.errors import NotFitted
from serve_app.profiler.cap_response import CapFit, fit_cap_response, with_cap_response
from serve_app.profiler.fit import FitResult, Identity, fit
from serve_app.profiler.samples import unlimited

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.samples import Sample


@dataclass(frozen=True, kw_only=True)
class WholeFit:
    """`base`: the fit, its model with the response if there is one. `limits`: that response;
    None where no power limit was swept, or where `refusal` says why it could not be fitted."""

    base: FitResult
    limits: CapFit | None = None
    refusal: str = ""


def fit_all(
    samples: Sequence[Sample], identity: Identity, *, allow_disturbed: bool = False
) -> WholeFit:
    """ConfigError or NotFitted as `fit`. A sweep over power limits that cannot be fitted leaves the
    model without a response: it is right where no limit is set."""
    base = fit(samples, identity, allow_disturbed=allow_disturbed)
    if len(unlimited(samples)) == len(samples):
        return WholeFit(base=base)
    try:
        limits = fit_cap_response(samples, base.model)
    except NotFitted as error:
        return WholeFit(base=base, refusal=str(error))
    return WholeFit(base=replace(base, model=with_cap_response(base.model, limits)), limits=limits)
