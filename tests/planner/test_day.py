"""What a day costs: by a constant rate, by a trace, by the hour, in money and CO2."""

from datetime import timedelta

import pytest
from log_rows import START, row
from planner_cases import CHAT, SMALL, answer, document, run, write_profile
from random_models import BANDS, H100

from policies.core.errors import ConfigError
from policies.core.types import SLO, Load, OperatingPoint
from serve_app.request_log.row import ENCODER

DAY_S = 86_400
TARGETS = ("--tpot-ms", 30, *SMALL)


@pytest.fixture
def profile(tmp_path):
    return write_profile(tmp_path, bands=BANDS)


def trace_of(folder, *rates, width_s=3600.0, prompt=500, output=200):
    """A trace with evenly spaced requests at these rates, one after another."""
    lines, begin_s = ["TIMESTAMP,ContextTokens,GeneratedTokens"], 0.0
    for rate in rates:
        count = round(rate * width_s)
        lines += [f"{begin_s + i / rate:.4f},{prompt},{output}" for i in range(count)]
        begin_s += width_s
    lines.append(f"{begin_s:.4f},{prompt},{output}")
    file = folder / "trace.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_constant_rate_costs_its_draw_all_day(profile):
    tariff = ("--price-per-kwh", 0.3, "--gco2-per-kwh", 400, "--pue", 1.2)
    found = answer(profile, *CHAT, *SMALL, *tariff)
    day, point = found["day"]["kept"], found["cheapest"]
    assert day["joules"] == pytest.approx(point["draw_watts"] * DAY_S)
    assert day["joules_per_request"] == pytest.approx(point["joules_per_request"])
    assert day["cost"] == pytest.approx(day["joules"] / 3.6e6 * 0.3 * 1.2)
    assert day["grams"] == pytest.approx(day["joules"] / 3.6e6 * 400 * 1.2)
    assert (day["grams_known_ratio"], day["missed_slots"], day["num_slots"]) == (1.0, 0, 24)


def test_the_names_of_the_tariff_options_that_others_use_work_too(profile):
    one = answer(profile, *CHAT, *SMALL, "--price-per-kwh", 0.3, "--gco2-per-kwh", 400)
    other = answer(profile, *CHAT, *SMALL, "--electricity-price", 0.3, "--carbon-intensity", 400)
    assert one["day"] == other["day"]


def test_without_prices_cost_and_carbon_are_not_known(profile):
    day = answer(profile, *CHAT, *SMALL)["day"]["kept"]
    assert (day["cost"], day["grams"], day["grams_known_ratio"]) == (None, None, None)
    table = run(profile, *CHAT, *SMALL).stdout
    assert "kg CO2" not in table


def test_a_trace_is_planned_for_its_busy_minutes_and_costed_by_the_hour(profile, tmp_path):
    file = trace_of(tmp_path, 1.0, 6.0)
    found = document(profile, "--trace", file, *TARGETS)
    question = found["question"]
    assert question["load"] == {
        "arrival_rate_per_s": pytest.approx(6.0, rel=0.02),
        "prompt_tokens": pytest.approx(500.0),
        "output_tokens": pytest.approx(200.0),
    }
    assert question["mean_load"]["arrival_rate_per_s"] == pytest.approx(3.5, rel=0.01)
    (one,) = found["profiles"]
    point = OperatingPoint(
        num_replicas=one["cheapest"]["num_replicas"],
        max_num_active_seqs=one["cheapest"]["max_num_active_seqs"],
    )
    watts = [
        H100.predict(
            point, Load(arrival_rate_per_s=rate, prompt_tokens=500.0, output_tokens=200.0), SLO()
        ).draw_watts
        for rate in (1.0, 6.0)
    ]
    kept = one["day"]["kept"]
    assert kept["num_slots"] == 2
    assert kept["joules"] == pytest.approx(sum(watts) / 2 * DAY_S, rel=0.01)
    assert kept["joules_per_request"] == pytest.approx(sum(watts) / 2 / 3.5, rel=0.01)


def test_the_policy_follows_the_hours_with_fewer_replicas(profile, tmp_path):
    """Twenty times the load in the second hour: the point kept has the peak's replicas all day."""
    file = tmp_path / "curve.csv"
    file.write_text("minute,rps\n0,2\n60,40\n")
    lengths = ("--prompt-tokens", 500, "--output-tokens", 200)
    days = answer(profile, "--trace", file, *lengths, *TARGETS)["day"]
    assert days["followed"]["mean_replicas"] < days["kept"]["mean_replicas"]
    assert days["followed"]["joules"] < days["kept"]["joules"]
    assert days["followed"]["missed_slots"] == 0


def test_a_trace_shorter_than_an_hour_is_one_slot(profile, tmp_path):
    file = trace_of(tmp_path, 2.0, 4.0, width_s=300.0)
    day = answer(profile, "--trace", file, *TARGETS)["day"]["kept"]
    assert day["num_slots"] == 1
    load = Load(arrival_rate_per_s=1801 / 600, prompt_tokens=500.0, output_tokens=200.0)
    busy = H100.predict(OperatingPoint(num_replicas=1, max_num_active_seqs=160), load, SLO())
    assert day["joules"] == pytest.approx(busy.draw_watts * DAY_S, rel=1e-3)


def test_request_logs_are_a_trace_of_one_of_their_models(profile, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    rows = [
        row(i, start=START + timedelta(seconds=i), model=("a", "b")[i % 2]) for i in range(1200)
    ]
    lines = b"".join(ENCODER.encode(one) + b"\n" for one in rows)
    (folder / "a.requests.jsonl").write_bytes(lines)
    several = run(profile, "--trace", folder, *TARGETS)
    assert "choose one by --model" in str(several.exception)
    load = document(profile, "--trace", folder, "--model", "a", *TARGETS)["question"]["load"]
    assert load["arrival_rate_per_s"] == pytest.approx(0.5)
    assert (load["prompt_tokens"], load["output_tokens"]) == (100.0, 20.0)
    assert "--model" in str(run(profile, *CHAT, "--model", "a").exception)


def test_less_than_the_busiest_minute_may_be_planned_for(profile, tmp_path):
    file = trace_of(tmp_path, 1.0, 6.0)
    half = document(profile, "--trace", file, "--trace-percentile-rate", 0.4, *TARGETS)
    assert half["question"]["load"]["arrival_rate_per_s"] == pytest.approx(1.0, rel=0.02)
    assert half["profiles"][0]["day"]["kept"]["num_slots"] == 2


def test_an_hour_without_requests_costs_the_idle_draw(profile, tmp_path):
    file = tmp_path / "curve.csv"
    file.write_text("minute,rps\n0,2\n60,0\n")
    found = document(
        profile, "--trace", file, "--prompt-tokens", 500, "--output-tokens", 200, *TARGETS
    )
    kept = found["profiles"][0]["day"]["kept"]
    load = Load(arrival_rate_per_s=2.0, prompt_tokens=500.0, output_tokens=200.0)
    busy = H100.predict(OperatingPoint(num_replicas=1, max_num_active_seqs=160), load, SLO())
    assert kept["joules"] == pytest.approx((busy.draw_watts + 121.0) / 2 * DAY_S, rel=1e-6)


def test_carbon_follows_the_hours_of_its_file(profile, tmp_path):
    """The load has two hours, idle and busy; clean power is there in the busy one only."""
    curve = tmp_path / "curve.csv"
    curve.write_text("minute,rps\n0,0\n60,4\n")
    lengths = ("--prompt-tokens", 500, "--output-tokens", 200)
    grid = tmp_path / "grid.csv"
    rows = [f"2026-01-01T{h:02d}:00,{100 if h % 2 else 500}" for h in range(24)]
    grid.write_text("time,gCO2_per_kWh\n" + "\n".join(rows) + "\n")
    (found,) = document(profile, "--trace", curve, *lengths, *TARGETS, "--gco2-per-kwh", grid)[
        "profiles"
    ]
    day = found["day"]["kept"]
    idle = 121.0
    busy = day["joules"] / DAY_S * 2 - idle
    expected = (idle * 500 + busy * 100) / 2 * DAY_S / 3.6e6
    assert day["grams"] == pytest.approx(expected, rel=1e-6)
    assert day["grams_known_ratio"] == 1.0


def test_a_gap_in_the_carbon_file_is_said(profile, tmp_path):
    grid = tmp_path / "grid.csv"
    hours = [h for h in range(48) if not 10 <= h < 22]
    rows = [f"2026-01-{1 + h // 24:02d}T{h % 24:02d}:00,200" for h in hours]
    grid.write_text("time,gCO2_per_kWh\n" + "\n".join(rows) + "\n")
    arguments = (*CHAT, *SMALL, "--gco2-per-kwh", grid)
    day = answer(profile, *arguments)["day"]["kept"]
    assert day["grams_known_ratio"] == pytest.approx(36 / 48)
    assert day["grams"] == pytest.approx(day["joules"] / 3.6e6 * 200)
    assert "(intensity known for 75%)" in run(profile, *arguments).stdout


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("minute,rps\n0,1\n", (), "a rate curve has no lengths"),
        (
            "minute,rps\n0,0\n60,0\n",
            ("--prompt-tokens", 5, "--output-tokens", 5),
            "every rate is 0",
        ),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,5\n", (), "one moment has no rate"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,5\n90,5,5\n",
            ("--prompt-tokens", 5, "--output-tokens", 5),
            "has lengths of its own",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,5\n600,5,5\n",
            ("--trace-percentile-rate", 0.5),
            "nothing arrives in that share of minutes",
        ),
        ("what\n", (), "no known trace format"),
        ("", ("--trace-percentile-rate", 0), "--trace-percentile-rate 0: allowed"),
    ],
)
def test_a_trace_that_cannot_be_planned_for_is_refused(profile, tmp_path, text, options, line):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    done = run(profile, "--trace", file, *options, *TARGETS)
    assert isinstance(done.exception, ConfigError), done.output
    assert line in str(done.exception)
