"""`jouleserve report`: figures worked out by hand, prices, carbon with gaps, and clear errors."""

import csv
import io
import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from log_rows import NO_ENERGY, START, row
from typer.testing import CliRunner

from policies.core.errors import ConfigError
from serve_app.cli import report as command
from serve_app.cli.main import app
from serve_app.report.summary import Question, Timeline, summarise
from serve_app.report.tariff import Intensity, Tariff, read_intensity
from serve_app.request_log.row import ENCODER

HOUR = timedelta(hours=1)


@pytest.fixture
def folder(tmp_path):
    """Six requests of two models and tenants in two hours:

    ada   m1  14:00  12 J (4 + 8), 100 + 20 tokens, met
    ada   m1  14:10  24 J (4 + 20), 300 + 30 tokens, TTFT 2 s
    ada   m1  15:00  6 J, aborted
    bob   m2  14:00  energy unavailable, 100 + 20 tokens, met
    bob   m2  15:30  18 J (6 + 12), 200 + 50 tokens, TPOT 0.2 s
    -     m2  15:30  rejected
    """
    ada = {"model": "m1", "tenant": "ada", "tenant_kind": "user"}
    bob = {"model": "m2", "tenant": "[/]bob $1", "tenant_kind": "user"}
    none = {"prompt_tokens": None, "output_tokens": None, "ttft_s": None, "tpot_s": None}
    rows = [
        row(1, **ada),
        row(2, **ada, start=START + timedelta(minutes=10), joules=24.0, decode_joules=20.0,
            device_joules={"gpu": 24.0}, prompt_tokens=300, output_tokens=30, ttft_s=2.0),
        row(3, **ada, **none, start=START + HOUR, joules=6.0, prefill_joules=6.0,
            decode_joules=0.0, device_joules={"gpu": 6.0}, outcome="aborted"),
        row(4, **bob, **NO_ENERGY),
        row(5, **bob, start=START + 1.5 * HOUR, joules=18.0, prefill_joules=6.0,
            decode_joules=12.0, device_joules={"gpu": 18.0}, prompt_tokens=200, output_tokens=50,
            tpot_s=0.2, coverage_ratio=0.5, source="estimated"),
        row(6, model="m2", **NO_ENERGY, **none, start=START + 1.5 * HOUR, outcome="rejected"),
    ]  # fmt: skip
    file = tmp_path / "a.requests.jsonl"
    file.write_bytes(b"".join(ENCODER.encode(r) + b"\n" for r in rows))
    return tmp_path


def run(*arguments):
    environment = {"COLUMNS": "250", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env=environment)


def document(*arguments, code=0):
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_the_figures_are_those_worked_out_by_hand(folder):
    total = document(folder)["total"]
    assert (total["requests"], total["completed"], total["aborted"], total["rejected"]) == (
        6,
        4,
        1,
        1,
    )
    assert (total["prompt_tokens"], total["output_tokens"]) == (700, 120)
    assert total["joules"] == 60
    assert (total["prefill_joules"], total["decode_joules"], total["idle_joules"]) == (20, 40, 4)
    assert total["device_joules"] == {"cpu": 2, "gpu": 58}
    assert total["joules_per_request"] == 60 / 3  # completed, energy known
    assert total["joules_per_output_token"] == 60 / 100
    assert total["joules_per_prompt_token"] == pytest.approx(20 / 600)
    assert total["energy_known_ratio"] == 4 / 5  # a rejected request has none to know
    assert total["coverage_ratio"] == 3.5 / 4
    assert total["sources"] == ["counter", "estimated"]
    assert "slo_attainment_ratio" not in total
    assert "cost" not in total
    assert "gco2" not in total


def test_groups_add_up_and_unknown_energy_is_null(folder):
    by_model = document(folder)["groups"]
    assert [(g["model"], g["joules"], g["requests"]) for g in by_model] == [
        ("m1", 42, 3),
        ("m2", 18, 3),
    ]
    by_both = document(folder, "--by", "tenant,hour")["groups"]
    assert [(g["hour"][11:13], g["tenant"], g["joules"]) for g in by_both] == [
        ("14", "ada", 36), ("14", "[/]bob $1", None), ("15", "[/]bob $1", 18), ("15", "ada", 6), ("15", None, None),
    ]  # fmt: skip
    unknown = by_both[1]
    assert unknown["requests"] == 1
    assert unknown["joules_per_request"] is None
    assert unknown["energy_known_ratio"] == 0
    assert by_both[3]["joules_per_request"] is None  # joules, but no answer


def test_the_period_is_by_arrival_and_ends_before_until(folder):
    def count(*period):
        return document(folder, *period)["total"]["requests"]

    assert count("--since", "2026-11-21T15:00") == 3
    assert count("--until", "2026-11-21T15:00Z") == 3
    assert count("--since", "2026-11-21T16:00+02:00", "--until", "2026-11-21T14:05") == 2
    empty = run(folder, "--since", "2027-01-01")
    assert empty.exit_code == 0
    assert "no requests in the period" in empty.output


def test_attainment_is_of_all_requests_that_arrived(folder):
    slo = ("--slo-ttft-ms", 1000, "--slo-tpot-ms", 100)
    assert document(folder, *slo)["total"]["slo_attainment_ratio"] == 2 / 6


def test_money_is_joules_per_token_times_price_over_3_6(folder):
    total = document(folder, "--price-per-kwh", 0.3, "--pue", 1.2)["total"]
    assert total["cost_per_million_output_tokens"] == pytest.approx(0.6 * 0.3 / 3.6 * 1.2)
    assert total["cost"] == pytest.approx(60 / 3.6e6 * 0.3 * 1.2)
    assert total["cost_per_request"] == pytest.approx(20 / 3.6e6 * 0.3 * 1.2)


def test_carbon_follows_the_time_and_names_the_gaps(folder, tmp_path):
    file = tmp_path / "grid.csv"
    file.write_text(
        "time,gCO2_per_kWh\n2026-11-21T13:30Z,100\n2026-11-21T15:00+01:00,200\n"
        "2026-11-21T14:30,300\n2026-11-21T15:30,500\n2026-11-21T16:00,0\n"
    )
    found = document(folder, "--gco2-per-kwh", file)
    # 12 J and 24 J at 200, 18 J at 500; 6 J at 15:00 are at the end of 14:30's half hour
    assert found["total"]["gco2"] == pytest.approx((36 * 200 + 6 * 300 + 18 * 500) / 3.6e6)
    assert found["total"]["gco2_known_ratio"] == 1
    assert found["intensity_gap_joules"] == {}
    file.write_text(
        "time,gCO2_per_kWh\n2026-11-21T14:05,100\n2026-11-21T14:15,100\n2026-11-21T15:25,300\n2026-11-21T15:35,300\n"
    )
    found = document(folder, "--gco2-per-kwh", file)
    assert found["total"]["gco2"] == pytest.approx((24 * 100 + 18 * 300) / 3.6e6)
    assert found["total"]["gco2_known_ratio"] == pytest.approx(42 / 60)
    assert found["total"]["gco2_per_request"] == pytest.approx(20 * (7800 / 42) / 3.6e6)
    assert found["intensity_gap_joules"] == {
        "before 2026-11-21 14:05 UTC": 12, "2026-11-21 14:25 UTC to 2026-11-21 15:25 UTC": 6,
    }  # fmt: skip
    text = run(folder, "--gco2-per-kwh", file).output
    assert "carbon intensity is known for 70.0% of the joules" in text
    assert "14:25 UTC to 2026-11-21 15:25 UTC: 6.0 J" in text
    constant = document(folder, "--gco2-per-kwh", 360)["total"]
    assert constant["gco2"] == pytest.approx(60 * 1e-4)
    assert constant["gco2_per_million_output_tokens"] == pytest.approx(0.6 * 100)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "grid.csv:1: expected the header time,gCO2_per_kWh, found an empty file"),
        ("when,g\n", "grid.csv:1: expected the header time,gCO2_per_kWh, found when,g"),
        ("time,gCO2_per_kWh\n2026-11-21,5\nnoon,5\n", "grid.csv:3: time 'noon': not an ISO 8601"),
        ("time,gCO2_per_kWh\n2026-11-21,-5\n", "grid.csv:2: gCO2_per_kWh '-5': allowed: a number"),
        ("time,gCO2_per_kWh\n2026-11-21,nan\n", "grid.csv:2: gCO2_per_kWh 'nan'"),
        ("time,gCO2_per_kWh\n2026-11-21,5,6\n", "grid.csv:2: 3 columns"),
        ("time,gCO2_per_kWh\n2026-11-21,5\n2026-11-21,6\n", "grid.csv:3: .*not later than"),
        ("time,gCO2_per_kWh\n2026-11-21,5\n", "grid.csv: 1 values; allowed: two or more"),
    ],
)
def test_a_bad_intensity_file_is_one_line_with_its_number(tmp_path, text, line):
    file = tmp_path / "grid.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=line):
        read_intensity(str(file))


def test_an_intensity_holds_until_the_next_but_not_for_ever():
    step = Intensity((0.0, 60.0, 120.0), (1.0, 2.0, 3.0), hold_s=60.0)

    def at(seconds):
        return step.at(datetime.fromtimestamp(seconds, UTC))

    assert [at(-1), at(0), at(59), at(60), at(180), at(182)] == [None, 1, 1, 2, 3, None]
    assert step.gap_at(datetime.fromtimestamp(500, UTC)) == "after 1970-01-01 00:03 UTC"


def test_the_table_says_unavailable_never_zero(folder):
    text = run(folder, "--by", "tenant", "--price-per-kwh", "0.3").output
    bob = next(line for line in text.splitlines() if "[/]bob $1" in line)
    assert "18.0" in bob
    only_unknown = run(folder, "--until", "2026-11-21T14:05", "--by", "model").output
    m2 = next(line for line in only_unknown.splitlines() if "m2" in line)
    assert m2.count("unavailable") == 4  # J and three J/...
    assert "energy unavailable for 1 of 2 requests" in only_unknown
    assert "1 requests: nvml: no driver" in only_unknown
    assert "meters saw 87.5% of their work" in text


def test_many_groups_are_summed_in_one_line(folder):
    text = run(folder, "--by", "tenant,hour", "--top", 2).output
    assert "3 more" in text


def test_csv_has_a_line_per_group(folder):
    done = run(folder, "--csv", "--by", "model")
    first, second = csv.DictReader(io.StringIO(done.stdout))
    assert (first["model"], first["joules"], first["gpu_joules"]) == ("m1", "42.0", "40.0")
    assert second["energy_known_ratio"] == "0.5"
    assert "energy unavailable for 1 of 5" in done.stderr


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_rows_are_exported_as_they_are(folder, tmp_path, ending):
    file = tmp_path / f"rows{ending}"
    done = run(folder, "--export", file, "--until", "2026-11-21T15:00")
    assert done.exit_code == 0, done.output
    if ending == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table(file).to_pylist()
        assert rows[0]["start"] == START
    elif ending == ".csv":
        rows = list(csv.DictReader(file.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["response_id"] for r in rows] == ["chatcmpl-1", "chatcmpl-2", "chatcmpl-4"]
    assert float(rows[1]["joules"]) == 24
    assert rows[2]["joules"] in (None, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--by", "models"], "--by models: allowed, each once: model, tenant, hour"),
        (["--since", "yesterday"], "--since yesterday: allowed: ISO 8601"),
        (["--since", "1h", "--until", "2h"], "--since 1h is not before --until 2h"),
        (["--pue", "0.9"], "--pue 0.9: allowed: a number >= 1"),
        (["--price-per-kwh", "-1"], "--price-per-kwh -1: allowed"),
        (["--gco2-per-kwh", "-1"], "--gco2-per-kwh -1: allowed"),
        (["--gco2-per-kwh", "grid"], "grid: no such file, and not a number"),
        (["--slo-ttft-ms", "5"], "give both"),
        (["--export", "rows.xls"], "allowed endings: .parquet, .csv, .jsonl"),
        (["--picture", "a.bmp"], "allowed endings: .png, .svg, .pdf"),
        (["--json", "--csv"], "one of them"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, line):
    done = run(folder, *arguments)
    assert isinstance(done.exception, ConfigError)
    assert line in str(done.exception)


def test_bad_rows_are_counted_told_and_exit_1(folder):
    with (folder / "a.requests.jsonl").open("ab") as file:
        file.write(b'{"what": 1}\n{"schema":1,"resp')
    done = run(folder)
    assert done.exit_code == 1
    assert "1 unfinished last lines" in done.output
    assert "1 lines are no row, left out; the first: a.requests.jsonl:7:" in done.output
    assert document(folder, code=1)["total"]["joules"] == 60


def test_times_ago():
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert command.parse_time("--since", "36h", now) == now - 36 * HOUR
    assert command.parse_time("--since", "0.5d", now) == now - 12 * HOUR


def test_a_timeline_of_any_length_has_about_a_hundred_bars_and_loses_nothing():
    line = Timeline()
    for i in range(5000):
        time = START + timedelta(minutes=7 * ((i * 37) % 5000))  # out of order, 25 days
        line.at(time).add(row(i, start=time), None, None)
    assert len(line.bars) <= 97
    assert line.width_s == 86_400
    assert sum(bar.joules for bar in line.bars.values()) == 5000 * 12
    assert all(start % line.width_s == 0 for start in line.bars)


@pytest.mark.slow
def test_the_picture_is_drawn(folder, tmp_path):
    pytest.importorskip("matplotlib")
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        file = tmp_path / f"report{ending}"
        done = run(folder, "--by", "model,tenant", "--picture", file)
        assert done.exit_code == 0, done.output
        assert file.read_bytes().startswith(magic)
    svg = (tmp_path / "report.svg").read_text()
    assert "bob" in svg or len(svg) > 20_000


def test_an_empty_period_has_no_nan(folder):
    question = Question(folder=folder, since=START + 100 * HOUR, tariff=Tariff(price_per_kwh=0.3))
    total = summarise(question).total.to_dict(question.tariff, None)
    assert all(v is None or not math.isnan(v) for v in total.values() if isinstance(v, float))
    assert total["cost"] is None
