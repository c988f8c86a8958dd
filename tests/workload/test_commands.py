"""`jouleserve workload` as a user meets it: tables, JSON, the comparison, the picture, bad input."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from log_rows import NO_ENERGY, START, row
from typer.testing import CliRunner
from workload_planted import csv_text, rows, write_log

from policies.core.errors import ConfigError, EnergyServeError, OutOfRange
from policies.model.binned import request_joules
from policies.sim.trace import Lengths, poisson
from serve_app.cli.main import app
from serve_app.deciders import load_profile
from serve_app.request_log.row import ENCODER

PROFILE = Path(__file__).parents[1] / "data" / "h100_llama8b.json"
H100 = load_profile(str(PROFILE))
NAIVE = ("--peak-tflops", 989, "--tdp-watts", 700, "--params-b", 8)
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def run(*arguments):
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["workload", *map(str, arguments)], env=environment)


def document(*arguments, code=0):
    done = run(*arguments, "--json")
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


@pytest.fixture
def trace(tmp_path):
    """600 s of Poisson arrivals at 5/s: 500 prompt and 100 output tokens each."""
    found = poisson(5.0, 600.0, Lengths.constant(500, 100), seed=3)
    path = tmp_path / "trace.csv"
    lines = [f"{r.arrival_s:.6f},{r.prompt_tokens},{r.output_tokens}" for r in found]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def by_name(energy):
    return {one["name"]: one for one in energy["estimates"]}


def test_fit_prints_a_summary_in_the_manner_of_statsmodels(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(csv_text(rows(noise=0.02)))
    done = run("fit", path)
    assert done.exit_code == 0, done.output
    for word in (
        "Dep. Variable:", "joules", "run_time_s", "R-squared (uncentered):", "F-statistic:",
        "Prob (F-statistic):", "Adj. R-squared", "coef", "std err", "P>|t|", "[0.025", "HC3",
        "alpha1b output_tokens/batch", "Cond. No. (scaled):", "Held out, p95:", "No. Observations:",
        "valid range: prompt_tokens 32 to 3000, output_tokens 8 to 300, batch 1 to 16",
    ):  # fmt: skip
        assert word in done.stdout


def test_fit_json_is_one_document_on_stdout(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(csv_text(rows(noise=0.02)))
    found = document("fit", path)
    assert found["energy"]["method"] == "WLS, relative"
    assert [term["name"] for term in found["run_time"]["terms"]] == [
        "alpha0", "alpha1", "alpha2", "alpha1b",
    ]  # fmt: skip
    assert found["workload"]["alpha0_joules_per_prompt_token"] == pytest.approx(0.02, rel=0.05)


def test_a_damaged_log_is_fitted_and_told_by_exit_status_1(tmp_path):
    folder = write_log(tmp_path / "log", [(p, o, j, s, 1) for p, o, j, s, _ in rows()])
    with (folder / "a.requests.jsonl").open("ab") as file:
        file.write(b'{"what": 1}\n')
    assert document("fit", folder, code=1)["unreadable"] == 1
    assert document("describe", folder, code=1)["format"] == "request_log"


def test_a_trace_alone_is_described(trace):
    assert document(trace) == document("describe", trace)
    wrong = run("descrbe", trace)
    assert wrong.exit_code == 2
    assert "No such command" in wrong.output


def test_describe_bins_lengths_and_arrivals(trace):
    found = document("describe", trace)
    assert found["format"] == "csv"
    assert [(b["prompt_bin"], b["output_bin"], b["share_ratio"]) for b in found["bins"]] == [
        (512, 128, 1.0)
    ]
    assert found["arrivals"]["interarrival_cv"] == pytest.approx(1.0, abs=0.06)
    assert found["prompt_tokens"]["p99"] == 500
    assert found["energy"] is None
    text = run("describe", trace).stdout
    for word in (
        "inter-arrival CV",
        "% of requests with up to",
        "hour",
        "index of dispersion, 10 s",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("iso.csv", [HEADER, "2026-11-21 10:00:00,500,100", "2026-11-21 10:00:09,500,100"]),
        ("seconds.csv", [HEADER, "0,500,100", "9,500,100"]),
        (
            "mooncake.jsonl",
            [
                '{"timestamp": 0, "input_length": 500, "output_length": 100}',
                '{"timestamp": 9000, "input_length": 500, "output_length": 100}',
            ],
        ),
    ],
)
def test_every_format_with_lengths_is_estimated(tmp_path, name, lines):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    found = document("describe", path, "--profile", PROFILE, "--batch", 4)
    expected = 2 * request_joules(H100.power, 500, 100, 4)
    assert by_name(found["energy"])["binned, mean lengths"]["joules"] == pytest.approx(expected)
    assert found["arrivals"]["mean_per_s"] == pytest.approx(2 / 9)


def test_a_rate_curve_is_described_without_lengths(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("minute,rps\n0,1\n60,3\n120,2\n")
    found = document("describe", path)
    assert found["bins"] == []
    assert found["arrivals"]["mean_per_s"] == pytest.approx(2.0)
    assert found["day"]["every_day"][:3] == pytest.approx([1.0, 3.0, 2.0])
    assert "a rate curve: no single arrivals" in run("describe", path).stdout
    for option in (("--profile", PROFILE), NAIVE, ("--measured-joules", 5)):
        failed = run("describe", path, *option)
        assert isinstance(failed.exception, ConfigError)
        assert "holds no lengths of requests" in str(failed.exception)


def test_the_estimates_stand_beside_the_measured_energy_with_their_errors(trace):
    arguments = ("describe", trace, "--profile", PROFILE, "--batch", 8, "--measured-joules", 90_000)
    found = document(*arguments, *NAIVE, "--utilization", 0.5)["energy"]
    requests = found["requests"]
    estimates = by_name(found)
    mean = requests * request_joules(H100.power, 500, 100, 8)
    edges = requests * request_joules(H100.power, 512, 128, 8)
    naive = requests * 600 * 2 * 8e9 / 989e12 * 700
    assert {name: one["joules"] for name, one in estimates.items()} == {
        "naive: FLOPs at peak, TDP": pytest.approx(naive),
        "naive: FLOPs at 50% of peak, TDP": pytest.approx(2 * naive),
        "binned, upper edges (as the paper)": pytest.approx(edges),
        "binned, mean lengths": pytest.approx(mean),
    }
    for one in estimates.values():
        assert one["error_ratio"] == pytest.approx(one["joules"] / 90_000 - 1)
    assert found["measured_from"] == "--measured-joules"
    assert found["batch_from"] == "--batch, the same for every request"
    text = run(*arguments).stdout
    assert "measured, by --measured-joules" in text
    assert f"{mean / 90_000 - 1:+.1%}" in text


def test_the_batch_is_by_littles_law_unless_it_is_given(trace):
    found = document("describe", trace, "--profile", PROFILE)
    energy = found["energy"]
    assert energy["batch_from"].startswith("Little's law")
    assert any(note.startswith("batch by Little's law") for note in found["notes"])
    assert {one["batch_bin"] for one in energy["bins"]} <= {4, 8, 16}
    estimates = by_name(energy)
    with_idle = estimates["binned, mean lengths, and idle"]["joules"]
    assert with_idle > estimates["binned, mean lengths"]["joules"]
    assert energy["measured_joules"] is None
    assert all(one["error_ratio"] is None for one in energy["estimates"])
    assert sum(one["joules"] for one in energy["bins"]) == pytest.approx(
        estimates["binned, mean lengths"]["joules"]
    )


def test_requests_beyond_the_profile_are_counted_and_left_out(tmp_path):
    path = tmp_path / "trace.csv"
    lines = ["0,500,100", "1,500,100", "2,9000,5", "3,4000,9000"]
    path.write_text("\n".join([HEADER, *lines]))
    found = document("describe", path, "--profile", PROFILE, "--batch", 1, *NAIVE)
    assert sum(one["requests"] for one in found["bins"]) == 4
    energy = found["energy"]
    assert (energy["requests"], energy["tokens"]) == (2, 1200)
    assert energy["left_out"] == {
        "with a prompt above 4915.2 tokens": 1,
        "with prompt + output above 9830.4 tokens": 1,
    }
    naive = by_name(energy)["naive: FLOPs at peak, TDP"]["joules"]
    assert naive == pytest.approx(1200 * 2 * 8e9 / 989e12 * 700)
    text = run("describe", path, "--profile", PROFILE, "--measured-joules", 9).stdout
    assert "1 requests with a prompt above 4915.2 tokens: not compared" in text
    assert "--measured-joules is of the whole trace" in text
    path.write_text("\n".join([HEADER, lines[2]]))
    failed = run("describe", path, "--profile", PROFILE)
    assert isinstance(failed.exception, OutOfRange)
    assert "none of the 1 requests lies within its range: 1 with a prompt above" in str(
        failed.exception
    )


@pytest.fixture
def log(tmp_path):
    """Forty requests of two replicas, a second apart, at exactly what a batch of 2 costs; one
    without energy, one metered by half, one aborted."""
    joules = request_joules(H100.power, 500, 100, 2)
    base = {"prompt_tokens": 500, "output_tokens": 100, "joules": joules, "model": H100.model}
    lines = [
        row(k, **base, start=START + timedelta(seconds=k // 2), replica=f"r{k % 2}")
        for k in range(40)
    ]
    lines += [
        row(40, **{**base, **NO_ENERGY}, start=START + timedelta(seconds=20)),
        row(41, **base, coverage_ratio=0.5, start=START + timedelta(seconds=20)),
        row(42, **{**base, "output_tokens": None}, outcome="aborted"),
    ]
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "a.requests.jsonl").write_bytes(b"".join(ENCODER.encode(r) + b"\n" for r in lines))
    return folder


def test_a_log_brings_its_own_measured_energy(log):
    found = document("describe", log, "--profile", PROFILE, "--batch", 2)
    energy = found["energy"]
    assert energy["requests"] == 40
    assert energy["measured_from"] == "the request log"
    assert energy["measured_joules"] == pytest.approx(40 * request_joules(H100.power, 500, 100, 2))
    assert by_name(energy)["binned, mean lengths"]["error_ratio"] == pytest.approx(0.0, abs=1e-9)
    assert energy["left_out"] == {"without measured energy": 2}
    assert found["left_out"] == {"without an answer, so of unknown lengths": 1}
    assert found["replicas"] == 3
    by_rate = by_name(document("describe", log, "--profile", PROFILE)["energy"])
    assert "binned, mean lengths, and idle" not in by_rate  # nor is idle in what was measured
    measured_only = document("describe", log)["energy"]
    assert measured_only["estimates"] == []
    assert measured_only["measured_joules"] == energy["measured_joules"]


def test_another_models_profile_is_said(log):
    text = run("describe", log, "--profile", "smollm2-135m-instruct@cpu").stdout
    assert f"is of smollm2-135m-instruct, the log of {H100.model}" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("fit", "nowhere.csv"), "nowhere.csv: No such file or directory"),
        (("describe", "nowhere.csv"), "nowhere.csv: No such file or directory"),
        (("describe", "{trace}", "--batch", 4), "--batch: needs --profile"),
        (("describe", "{trace}", "--tdp-watts", 700), "--params-b: give all three"),
        (("describe", "{trace}", "--utilization", 0.4), "--params-b: give all three"),
        (("describe", "{trace}", *NAIVE, "--utilization", 40), "--utilization 40: allowed"),
        (("describe", "{trace}", "--measured-joules", -1), "--measured-joules -1: allowed: a num"),
        (("describe", "{trace}", "--peak-tflops", "nan"), "--peak-tflops nan: allowed: a number"),
        (("describe", "{trace}", "--model", "m"), "--model m: {trace} is a trace, which names no"),
        (("describe", "{trace}", "--profile", "none"), "no file 'none' (shipped profiles:"),
        (("describe", "{trace}", "--profile", PROFILE, "--batch", 1e6), "batch is 1e+06; fitted"),
        (("describe", "{trace}", "--picture", "a.bmp"), "allowed endings: .png, .svg, .pdf"),
        (("describe", "{bad}"), "is of no known trace format; expected a header"),
        (("describe", "{cdf}"), "holds a length CDF; expected a trace"),
        (("describe", "{folder}"), "holds no request log"),
        (("fit", "{folder}"), "holds no request log"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, trace, arguments, line):
    names = {"trace": trace, "bad": tmp_path / "bad.csv", "cdf": tmp_path / "cdf.csv"}
    names["folder"] = tmp_path / "empty"
    names["folder"].mkdir()
    names["bad"].write_text("a,b\n1,2\n")
    names["cdf"].write_text("cdf_pct,tokens\n100,5\n")
    done = run(*(str(part).format(**names) for part in arguments))
    assert isinstance(done.exception, EnergyServeError)
    assert line.format(**names) in str(done.exception)
    assert "\n" not in str(done.exception)


def test_the_picture_is_drawn(tmp_path, trace):
    pytest.importorskip("matplotlib")
    file = tmp_path / "workload.png"
    arguments = (*NAIVE, "--measured-joules", 9e4, "--profile", PROFILE, "--picture", file)
    done = run("describe", trace, *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_a_curve_and_of_one_request_say_what_they_lack(tmp_path):
    pytest.importorskip("matplotlib")
    for name, text in (("curve.csv", "minute,rps\n0,1\n60,3\n"), ("one.csv", f"{HEADER}\n0,1,1\n")):
        (tmp_path / name).write_text(text)
        done = run("describe", tmp_path / name, "--picture", tmp_path / "workload.svg")
        assert done.exit_code == 0, (done.output, done.exception)
        assert (tmp_path / "workload.svg").read_bytes().startswith(b"<?xml")
