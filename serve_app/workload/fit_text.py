"""A workload fit as people read it: a summary in the manner of statsmodels.

Its own summary prints coefficients to four decimals, which is nothing of a joule per token squared.
"""

from __future__ import annotations

from serve_app.workload.fit import WorkloadFit
from serve_app.workload.regression import Equation, Term

WIDTH = 96
FORM = "e = alpha0 tin + alpha1 tout + alpha2 tin tout"
BATCH_TERM = " + alpha1b tout / batch"


def summary(found: WorkloadFit) -> str:
    """Both equations, where they hold, and what was left out."""
    has_batch = any(term.name == "alpha1b" for term in found.energy.terms)
    lines = [
        "=" * WIDTH,
        f"{found.model} on {found.device}: {found.source}",
        f"{FORM}{BATCH_TERM if has_batch else ''}   (no intercept)",
        found.batch,
    ]
    for equation in (found.energy, found.run_time):
        if equation is not None:
            lines += _equation(equation)
    if found.run_time is None:
        lines += ["=" * WIDTH, "run_time_s: unavailable, no row has one"]
    ranges = ", ".join(f"{k} {r.least:g} to {r.most:g}" for k, r in found.valid.items())
    lines += ["=" * WIDTH, f"valid range: {ranges}"]
    lines += [f"left out: {count:,} requests {why}" for why, count in found.left_out.items()]
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def _equation(found: Equation) -> list[str]:
    header = (
        ("Dep. Variable:", found.quantity, "R-squared (uncentered):", f"{found.r_squared:.4f}"),
        ("Method:", found.method, "Adj. R-squared (uncent.):", f"{found.r_squared_adjusted:.4f}"),
        ("Std. errors:", found.standard_errors, "R-squared (centered):",
         _number(found.r_squared_centred, ".4f")),
        ("No. Observations:", f"{found.rows}", "F-statistic:", _number(found.f_statistic, ".5g")),
        ("Distinct settings:", f"{found.settings}", "Prob (F-statistic):",
         _number(found.f_p, ".3g")),
        ("Breusch-Pagan p:", _number(found.breusch_pagan_p, ".3g"), "Cond. No. (scaled):",
         f"{found.condition_number:.3g}"),
        ("Held out, median:", f"{found.held_out_median_ratio:.1%}", "Held out, p95:",
         f"{found.held_out_p95_ratio:.1%}"),
    )  # fmt: skip
    lines = ["=" * WIDTH]
    lines += [f"{a:<22}{b:>22}    {c:<26}{d:>22}" for a, b, c, d in header]
    lines += [
        "-" * WIDTH,
        f"{'':<35}{'coef':>12}{'std err':>10}{'t':>10}{'P>|t|':>7}{'[0.025':>11}{'0.975]':>11}",
        *(_term(term) for term in found.terms),
        "-" * WIDTH,
    ]
    return [*lines, *(f"warning: {warning}" for warning in found.warnings)]


def _term(term: Term) -> str:
    name = f"{term.name} {term.column}"
    error, t = _number(term.standard_error, ".2g"), _number(term.t, ".4g")
    p = _number(term.p, ".3f")
    low, high = _number(term.low, ".4g"), _number(term.high, ".4g")
    return f"{name:<35}{term.value:>12.4g}{error:>10}{t:>10}{p:>7}{low:>11}{high:>11}"


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
