from __future__ import annotations

from dataclasses import replace

import pytest
from profiler_planted import planted_samples

from policies.core.errors import ConfigError
from serve_app.profiler.fit import Identity, fit
from serve_app.profiler.variants import check_engine_args, comparison, parse_variants

KNOWN = ["enforce_eager", "max_num_batched_tokens", "enable_prefix_caching", "model"]


def test_without_options_there_is_one_engine_as_given():
    (only,) = parse_variants([], [])
    assert (only.tag, dict(only.engine_args)) == ("", {})


def test_varied_arguments_make_every_combination_with_the_fixed_ones():
    variants = parse_variants(
        ["enable_prefix_caching=true"],
        ["enforce_eager=[true, false]", "max_num_batched_tokens=[512, 2048]"],
    )
    assert [v.tag for v in variants] == [
        "enforce_eager=true+max_num_batched_tokens=512",
        "enforce_eager=true+max_num_batched_tokens=2048",
        "enforce_eager=false+max_num_batched_tokens=512",
        "enforce_eager=false+max_num_batched_tokens=2048",
    ]
    assert all(v.engine_args["enable_prefix_caching"] is True for v in variants)
    assert variants[2].engine_args["enforce_eager"] is False


@pytest.mark.parametrize(
    ("fixed", "varied", "reason"),
    [
        (["enforce_eager"], [], "--engine-arg 'enforce_eager': allowed: KEY=VALUE"),
        ([], ["enforce_eager=true"], r"--vary enforce_eager=true: allowed: KEY=\[VALUE"),
        ([], ["enforce_eager=[true]"], "two or more"),
        (["enforce_eager=true"], ["enforce_eager=[true, false]"], "is fixed by --engine-arg"),
        ([], ["enforce_eager=[a, a]"], "two values are the same"),
        (["enforce_eager={"], [], "no YAML"),
    ],
)
def test_wrong_options_say_what_is_allowed(fixed, varied, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_variants(fixed, varied)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("enforce_eagr=true", "enforce_eagr: no such engine argument; near: enforce_eager"),
        ("model=other", "model: the sweep sets it"),
        ("speculative_config={method: ngram}", "jouleserve bench"),
    ],
)
def test_arguments_that_the_engine_or_the_sweep_does_not_take_are_named(argument, reason):
    with pytest.raises(ConfigError, match=reason):
        check_engine_args(parse_variants([argument], []), KNOWN)
    check_engine_args(parse_variants(["enforce_eager=true"], []), KNOWN)


def test_the_comparison_shows_what_each_variant_costs():
    who = Identity(name="n", model="m", provenance={})
    base = fit(planted_samples(), who).model
    slower = replace(base, latency=replace(base.latency, t0_s=2 * base.latency.t0_s))
    variants = parse_variants([], ["enforce_eager=[false, true]"])
    first, second = comparison(list(zip(variants, (base, slower), strict=True)))
    assert (first["variant"], second["variant"]) == ("enforce_eager=false", "enforce_eager=true")
    added_s = second["step_s_at_8"] - first["step_s_at_8"]
    assert added_s == pytest.approx(base.latency.t0_s)
    assert first["joules_per_token_at_8"] == pytest.approx(
        base.power.step_joules(8, 8 * 256, 0) / 8
    )
    assert "step_s_at_128" not in first  # beyond what was measured
