"""Names to traces: presets against the figures they are made from, options, errors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from policies.core.errors import ConfigError
from policies.sim.blocks import joined
from policies.sim.length_fits import mean_tokens
from serve_app.traces.catalog import PRESET_FILE, load_catalog, load_presets
from serve_app.traces.files import read_trace
from serve_app.traces.load import BurstOptions, TraceOptions, load_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
PUBLIC_TRACES = Path(os.environ.get("JOULESERVE_TEST_DATA", "")) / "traces"


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    lines = [f"{k * 0.5},{k + 1},{2 * k + 1}" for k in range(1000)]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return str(path)


@pytest.fixture
def curve(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("minute,rps\n0,10\n10,30\n20,20\n")
    return str(path)


def whole(found):
    return joined(found.blocks())


def dispersion(times, width_s, duration_s):
    counts, _ = np.histogram(times, bins=int(duration_s // width_s), range=(0, duration_s))
    return counts.var() / counts.mean()


def test_chat_2023_is_like_the_trace_of_its_name():
    """Figures of the public trace: 5.53 req/s, CV 1.09, dispersion 1.39 / 3.86 / 16.1 at 1 / 10 /
    60 s, input p50 / p90 / p99 1020 / 2735 / 4142 and mean 1155, output 129 / 424 / 601 and 211."""
    found = [whole(load_trace("chat-2023", seed=seed)) for seed in range(12)]
    duration_s = load_trace("chat-2023").duration_s
    assert duration_s == pytest.approx(3502, abs=1)
    assert np.mean([b.rows for b in found]) / duration_s == pytest.approx(5.53, rel=0.06)
    gaps = [np.diff(b.arrival_s) for b in found]
    assert np.mean([g.std() / g.mean() for g in gaps]) == pytest.approx(1.09, abs=0.03)
    for width_s, published in ((1, 1.39), (10, 3.86), (60, 16.1)):
        measured = [dispersion(b.arrival_s, width_s, duration_s) for b in found]
        assert np.mean(measured) == pytest.approx(published, rel=0.2)
    prompts = np.concatenate([b.prompt_tokens for b in found])
    outputs = np.concatenate([b.output_tokens for b in found])
    assert np.percentile(prompts, [50, 90, 99]) == pytest.approx([1020, 2735, 4142], rel=0.02)
    assert np.percentile(outputs, [50, 90, 99]) == pytest.approx([129, 424, 601], rel=0.02)
    assert prompts.mean() == pytest.approx(1155, rel=0.02)
    assert outputs.mean() == pytest.approx(211, rel=0.02)


@pytest.mark.skipif(
    not (PUBLIC_TRACES / "azure_2023_conv.csv").exists(),
    reason="JOULESERVE_TEST_DATA does not name the folder with the public traces",
)
def test_chat_2023_has_the_lengths_of_the_real_trace():
    real = read_trace(PUBLIC_TRACES / "azure_2023_conv.csv")
    made = whole(load_trace("chat-2023", TraceOptions(rate_scale=10.0)))
    shares = [5, 10, 25, 50, 75, 90, 95, 99]
    for ours, theirs in ((made[1], real.prompt_tokens), (made[2], real.output_tokens)):
        assert np.percentile(ours, shares) == pytest.approx(np.percentile(theirs, shares), rel=0.05)


def test_code_2024_has_the_week_of_its_source():
    """Mean 27.8 req/s, weekdays over weekends 3, peak at 18 to 19 h UTC;
    the first day is a Friday."""
    curve = load_presets()["code-2024"].curve()
    rates = np.array(curve.rates_per_s)
    starts = np.array(curve.starts_s)
    assert curve.end_s == 7 * 86_400
    assert rates.mean() == pytest.approx(27.8)
    weekend = np.isin((starts // 86_400 + 4) % 7, (5, 6))
    assert rates[~weekend].mean() / rates[weekend].mean() == pytest.approx(3.0, rel=0.05)
    assert 18 <= starts[rates.argmax()] % 86_400 / 3600 <= 19
    first_weekday = rates[(starts >= 3 * 86_400) & (starts < 6 * 86_400)].mean()
    assert load_presets()["code-day"].arrivals.mean_per_s == pytest.approx(first_weekday, rel=0.02)


@pytest.mark.slow
def test_the_ten_minutes_of_code_2024_lie_as_far_apart_as_published():
    """Highest over lowest 40, and 88.3 req/s at most; 16.8 million requests."""
    counts = np.zeros(1008)
    for block in load_trace("code-2024", seed=1).blocks():
        counts += np.bincount((block.arrival_s / 600).astype(int), minlength=1008)
    assert counts.sum() == pytest.approx(16.8e6, rel=0.02)
    assert counts.max() / counts.min() == pytest.approx(40, rel=0.2)
    assert counts.max() / 600 == pytest.approx(88.3, rel=0.1)


@pytest.mark.parametrize(
    ("name", "prompt", "output"), [("chat-day", 1632, 106), ("code-bursty", 2511, 23)]
)
def test_presets_with_published_means_have_them(name, prompt, output):
    lengths = load_presets()[name].lengths()
    assert mean_tokens(lengths.prompt) == pytest.approx(prompt, rel=1e-6)
    assert mean_tokens(lengths.output) == pytest.approx(output, rel=1e-6)


def test_every_preset_and_public_trace_says_where_it_comes_from():
    for one in load_presets().values():
        assert all((one.citation, one.licence, *one.sources.model_dump().values()))
        assert one.burstiness()
    for one in load_catalog().values():
        assert all((one.citation, one.licence, one.file))
        assert one.address.endswith(one.file)
    assert not set(load_presets()) & set(load_catalog())
    assert all(load_trace(n, TraceOptions(duration_s=9.0)).duration_s == 9 for n in load_presets())


def test_a_file_is_itself(trace):
    found = load_trace(trace)
    block = whole(found)
    assert (found.requests, found.expected_requests, block.rows) == (1000, 1000, 1000)
    assert found.duration_s == 499.5
    assert [row.prompt_tokens for row in found.rows()] == list(range(1, 1001))
    assert whole(found).arrival_s.tolist() == block.arrival_s.tolist()  # once more, the same


def test_cut_rate_and_time_are_applied_in_this_order(trace):
    options = TraceOptions(begin_s=100.0, duration_s=50.0, rate_scale=3.0, time_scale=2.0)
    found = load_trace(trace, options)
    block = whole(found)
    assert found.requests == block.rows == 300
    assert found.duration_s == 100.0
    assert set(block.prompt_tokens.tolist()) == set(range(201, 301))
    assert 90 < block.arrival_s[-1] <= 100.0
    half = load_trace(trace, TraceOptions(rate_scale=0.5), seed=4)
    assert half.requests is None
    assert half.expected_requests == 500
    assert whole(half).rows == pytest.approx(500, abs=80)


def test_a_curve_needs_lengths_and_follows_its_rate(curve):
    with pytest.raises(ConfigError, match="holds no lengths; give --prompt-cdf and --output-cdf"):
        load_trace(curve, TraceOptions(prompt_cdf="100"))
    options = TraceOptions(prompt_cdf="100:300", output_cdf="7")
    found = load_trace(curve, options, seed=1)
    assert found.requests is None
    assert found.expected_requests == pytest.approx(600 * 60)
    assert found.duration_s == 1800
    block = whole(found)
    assert set(block.output_tokens.tolist()) == {7}
    assert block.prompt_tokens.min() >= 100 > 0 <= block.prompt_tokens.max() <= 300
    doubled = load_trace(curve, TraceOptions(prompt_cdf="9", output_cdf="7", rate_scale=2.0))
    assert doubled.expected_requests == pytest.approx(1200 * 60)
    assert whole(doubled).rows == pytest.approx(1200 * 60, rel=0.15)
    cut = TraceOptions(prompt_cdf="9", output_cdf="7", begin_s=600.0, duration_s=600.0)
    assert load_trace(curve, cut).expected_requests == pytest.approx(30 * 600)


def test_coarse_curves_fluctuate_within_their_steps_and_fine_ones_do_not(tmp_path):
    for step, expected in ((10, 0.15), (1, 0.0)):
        path = tmp_path / f"{step}.csv"
        rows = [f"{k * step},50" for k in range(600 // step)]
        path.write_text("\n".join(["minute,rps", *rows]) + "\n")
        options = TraceOptions(prompt_cdf="9", output_cdf="7")
        times = whole(load_trace(str(path), options, seed=2)).arrival_s
        excess = dispersion(times, 10, 36_000) - 1
        assert excess == pytest.approx(50 * 10 * expected**2, rel=0.25, abs=0.1)
        calm = TraceOptions(prompt_cdf="9", output_cdf="7", bursts=BurstOptions(rate_cv=0.0))
        times = whole(load_trace(str(path), calm, seed=2)).arrival_s
        assert dispersion(times, 10, 36_000) == pytest.approx(1, abs=0.1)


def test_names_joined_arrive_together_with_their_factors(trace, curve):
    single = load_trace(trace)
    both = load_trace(f"{trace} + 2*{trace}", seed=3)
    assert both.requests == 3000
    times = whole(both).arrival_s
    assert len(times) == 3000
    assert np.all(np.diff(times) >= 0)
    assert both.duration_s == single.duration_s
    mixed = load_trace("0.5*chat-2023+code-bursty", TraceOptions(duration_s=600.0))
    assert mixed.requests is None
    assert mixed.expected_requests == pytest.approx(600 * (5.53 / 2 + 27.8))
    twice = whole(load_trace("chat-2023+chat-2023", TraceOptions(duration_s=60.0), seed=3))
    assert len(set(twice.arrival_s.tolist())) == twice.rows  # their seeds differ


def test_options_for_bursts_are_those_of_generated_loads():
    bursts = BurstOptions(rate_cv=0.0, interarrival_cv=1.0, burst_factor=6.0, gap_s=60.0)
    found = load_trace("chat-2023", TraceOptions(bursts=bursts), seed=2)
    times = whole(found).arrival_s
    assert dispersion(times, 60, found.duration_s) > 40


def test_a_downloaded_trace_goes_by_its_name(trace, tmp_path, monkeypatch):
    monkeypatch.setenv("JOULESERVE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="not downloaded yet; run: jouleserve traces download a"):
        load_trace("azure-2023-code")
    folder = tmp_path / "cache" / "traces"
    folder.mkdir(parents=True)
    (folder / load_catalog()["azure-2023-code"].file).write_text(Path(trace).read_text())
    assert load_trace("azure-2023-code").requests == 1000


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("nowhere", {}, "no such file, and no trace of this name (presets: chat-2023, "),
        ("chat-2023+", {}, "empty name; expected NAME or FACTOR*NAME, joined by +"),
        ("0*chat-2023", {}, "expected FACTOR*NAME with a factor above 0"),
        ("1.2.3*chat-2023", {}, "expected FACTOR*NAME with a factor above 0"),
        ("chat-2023", {"prompt_cdf": "x"}, "--prompt-cdf 'x': expected a number"),
        ("chat-2023", {"begin_s": 9e9}, "begin 9e+09 s: expected 0 ≤ begin < 3501"),
        ("code-2024", {"rate_scale": 1e6}, "lower the rate"),
        ("{trace}", {"prompt_cdf": "5", "interpolate": True}, "--prompt-cdf, --interpolate is for"),
        ("{trace}", {"bursts": BurstOptions(rate_cv=0.1)}, "--rate-cv is for rate curves and"),
        ("{trace}", {"begin_s": 1e4}, "--begin-s 10000: {trace} ends at 499.5 s"),
        ("{trace}", {"begin_s": 0.1, "duration_s": 0.1}, "no request within --begin-s"),
        ("{cdf}", {}, "holds a length CDF; expected a trace"),
    ],
)
def test_bad_input_is_named(trace, tmp_path, spec, options, message):
    cdf = tmp_path / "cdf.csv"
    cdf.write_text("cdf_pct,tokens\n100,5\n")
    names = {"trace": trace, "cdf": cdf}
    with pytest.raises(ConfigError) as raised:
        load_trace(spec.format(**names), TraceOptions(**options))
    assert message.format(**names) in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [{"rate_scale": 0}, {"time_scale": float("nan")}, {"duration_s": -1}, {"begin_s": -1}],
)
def test_bad_options_name_themselves(options):
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name} .*: allowed: a number"):
        TraceOptions(**options)
    with pytest.raises(ConfigError, match="--seed -1: allowed"):
        load_trace("chat-2023", seed=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrivals": {"mean_per_s": 0, "hours": 1}}, "arrivals.mean_per_s"),
        ({"prompt_tokens": {"mean": 5}}, "expected quantiles, or mean and median"),
        ({"bursts": {"cv": 1}}, "unknown key (allowed: interarrival_cv"),
    ],
)
def test_a_damaged_preset_file_names_the_key(tmp_path, change, message):
    data = yaml.safe_load(PRESET_FILE.read_text(encoding="utf-8"))
    data["presets"]["chat-2023"] |= change
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as raised:
        load_presets(path)
    assert message in str(raised.value)
    path.write_text("traces: {}")
    with pytest.raises(ConfigError, match="expected one key, presets, with a mapping of names"):
        load_presets(path)
