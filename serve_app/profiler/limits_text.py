"""A fitted response to power limits as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.profiler.cap_response import CapFit


def limit_lines(fit: CapFit) -> list[str]:
    """The curve, what each limit did to each point, and the held-out errors; for the fit's summary.

    A point marked with * does not bind: it draws less than the limit anyway.
    """
    curve = fit.response
    span_watts = curve.ck_watts - curve.c0_watts
    lines = [
        f"power limit: natural draw {fit.natural_draw_watts:.4g} W per GPU",
        f"prompts: {curve.s_max:.3f} x / (1 + x^{curve.n:.3g})^(1/{curve.n:.3g}) of their speed",
        f"  where x = (limit - {curve.c0_watts:.4g} W) / {span_watts:.4g} W",
        f"decode: (that / {curve.decode_knee:.3g})^{curve.decode_exponent:.3g}, not above 1",
        f"  {'point':<30}{'limit, W':>10}{'speed':>8}{'draw, W':>10}{'without, W':>12}{'runs':>6}",
    ]
    lines += [
        f"{' ' if e.binds else '*'} {e.point:<30}{e.limit_watts:>10.4g}{e.speed_ratio:>8.3f}"
        f"{e.draw_watts:>10.4g}{e.natural_draw_watts:>12.4g}{e.runs:>6}"
        for e in fit.effects
    ]
    lines.append(f"  {'limit held out, W':<30}{'worst speed error':>20}{'worst draw error':>20}")
    lines += [
        f"  {h.limit_watts:<30.4g}{h.speed_error_ratio:>20.1%}{h.draw_error_ratio:>20.1%}"
        for h in fit.held_out
    ]
    lines.append(f"95 % of the held-out errors stay within {fit.band_ratio:.1%}")
    return [*lines, *fit.notes]
