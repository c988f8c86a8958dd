"""The workload model: planted coefficients come back, and nonsense is refused with its cause."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_rows import NO_ENERGY, START, row
from workload_planted import ENERGY, HEADER, RUN_TIME, csv_text, rows, write_log

from policies.core.errors import ConfigError, NotFitted
from serve_app.request_log.row import ENCODER
from serve_app.workload.fit import fit_workload
from serve_app.workload.log import read_log, shared_batches
from serve_app.workload.observations import read_observations

WITHOUT_BATCH = "prompt_tokens,output_tokens,joules,run_time_s"


def fitted(folder, text):
    path = folder / "requests.csv"
    path.write_text(text)
    return fit_workload(read_observations(path))


def values(equation):
    return tuple(term.value for term in equation.terms)


def test_exact_rows_give_the_planted_model_for_energy_and_run_time(tmp_path):
    found = fitted(tmp_path, csv_text(rows()))
    assert values(found.energy) == pytest.approx(ENERGY, rel=1e-6)
    assert values(found.run_time) == pytest.approx(RUN_TIME, rel=1e-6)
    assert found.energy.held_out_p95_ratio < 1e-6
    assert found.energy.r_squared == pytest.approx(1.0)
    model = found.workload
    assert model.request_joules(1000, 100, batch=8) == pytest.approx(
        0.02 * 1000 + 0.15 * 100 + 4e-5 * 1e5 + 3.0 * 100 / 8
    )
    assert (found.model, found.device) == ("m", "d")
    assert found.valid["prompt_tokens"].least == 32
    assert found.valid["batch"].most == 16


@settings(max_examples=15)
@given(
    a0=st.floats(1e-3, 0.1),
    a1=st.floats(0.02, 1.0),
    a2=st.floats(1e-6, 1e-4),
    a1b=st.floats(0.5, 10.0),
    seed=st.integers(0, 1000),
)
def test_planted_model_is_predicted_under_relative_noise(tmp_path_factory, a0, a1, a2, a1b, seed):
    """5 % of noise: request energies within the range come back within 8 %."""
    planted = (a0, a1, a2, a1b)
    folder = tmp_path_factory.mktemp("fit")
    found = fitted(folder, csv_text(rows(planted, noise=0.05, repeats=4, seed=seed)))
    for prompt, output, batch in ((32, 300, 1), (900, 60, 8), (3000, 8, 2), (200, 200, 16)):
        true = a0 * prompt + a1 * output + a2 * prompt * output + a1b * output / batch
        predicted = found.workload.request_joules(prompt, output, batch)
        assert predicted == pytest.approx(true, rel=0.08)


def test_standard_errors_and_intervals_are_those_of_repeated_measurement(tmp_path):
    """Over 60 seeds the 95 % intervals hold the truth nearly as often as they say, and the standard
    errors are near the spread of the coefficients."""
    found = [fitted(tmp_path, csv_text(rows(noise=0.05, seed=seed))).energy for seed in range(60)]
    for k, truth in enumerate(ENERGY):
        terms = [equation.terms[k] for equation in found]
        assert sum(term.low <= truth <= term.high for term in terms) >= 51
        spread = float(np.std([term.value for term in terms], ddof=1))
        typical = float(np.median([term.standard_error for term in terms]))
        assert typical == pytest.approx(spread, rel=0.4)


def test_relative_noise_is_weighted_and_even_noise_is_not(tmp_path):
    relative = fitted(tmp_path, csv_text(rows(noise=0.05))).energy
    assert relative.method == "WLS, relative"
    assert relative.breusch_pagan_p < 0.05
    even = fitted(tmp_path, csv_text(rows(even_noise=0.3, seed=2))).energy
    assert even.method == "OLS"
    assert even.breusch_pagan_p >= 0.05
    assert {relative.standard_errors, even.standard_errors} == {"HC3"}


@pytest.mark.parametrize("noise", [{"noise": 0.05}, {"even_noise": 0.3, "seed": 2}])
def test_the_figures_are_those_of_the_textbook(tmp_path, noise):
    """Coefficients, HC3 errors, R^2 and F by matrix algebra, for both ways to solve."""
    given = np.array(rows(**noise))
    tin, tout, y, _, batch = given.T
    x = np.column_stack([tin, tout, tin * tout, tout / batch])
    found = fitted(tmp_path, csv_text(rows(**noise))).energy
    if found.method != "OLS":
        first = np.linalg.lstsq(x / y[:, None], np.ones(len(y)), rcond=None)[0]
        mean = np.clip(x @ first, 0.5 * y, 2.0 * y)
        x, y = x / mean[:, None], y / mean
    inverse = np.linalg.inv(x.T @ x)
    truth = inverse @ x.T @ y
    residual, leverage = y - x @ truth, np.einsum("ij,jk,ik->i", x, inverse, x)
    covariance = inverse @ (x.T * (residual / (1 - leverage)) ** 2) @ x @ inverse
    errors = np.sqrt(np.diag(covariance))
    assert values(found) == pytest.approx(truth, rel=1e-6)
    assert [term.standard_error for term in found.terms] == pytest.approx(errors, rel=1e-6)
    assert [term.t for term in found.terms] == pytest.approx(truth / errors, rel=1e-6)
    assert found.r_squared == pytest.approx(1 - residual @ residual / (y @ y))
    assert found.f_statistic == pytest.approx(truth @ np.linalg.inv(covariance) @ truth / 4)


def test_held_out_errors_are_of_rows_that_the_fit_has_not_seen(tmp_path):
    """Four terms from 24 rows of 5 % noise: unseen rows are missed by more than seen ones."""
    held, seen = [], []
    for seed in range(10):
        given = [r for r in rows(noise=0.05, repeats=1, seed=seed) if r[4] != 4]
        found = fitted(tmp_path, csv_text(given))
        errors = [abs(found.workload.request_joules(p, o, b) / j - 1) for p, o, j, _, b in given]
        held.append(found.energy.held_out_p95_ratio)
        seen.append(float(np.percentile(errors, 95)))
    assert float(np.mean(held)) > 1.15 * float(np.mean(seen))
    assert 0.05 < float(np.mean(held)) < 0.2


def test_repeats_are_no_new_evidence(tmp_path):
    """Every row five times over: the same errors, because a setting is held out whole."""
    once = rows(noise=0.05, repeats=1)
    found = fitted(tmp_path, csv_text(once)).energy
    copied = fitted(tmp_path, csv_text(once * 5)).energy
    assert copied.rows == 5 * copied.settings == 5 * found.rows
    assert copied.held_out_median_ratio == pytest.approx(found.held_out_median_ratio, rel=1e-6)


def test_without_a_varying_batch_there_is_no_batch_term_and_it_says_so(tmp_path):
    unknown = fitted(tmp_path, csv_text(rows(), WITHOUT_BATCH))
    assert len(unknown.energy.terms) == 3
    assert "not known" in unknown.batch
    assert unknown.workload.alpha1b_shared_joules_per_output_token == 0.0
    one = fitted(tmp_path, csv_text([r for r in rows(repeats=8) if r[4] == 4]))
    assert "the batch is 4 in every row" in one.batch
    assert values(one.energy)[1] == pytest.approx(ENERGY[1] + ENERGY[3] / 4)


def test_a_missing_run_time_or_energy_is_left_out_not_taken_as_0(tmp_path):
    text = csv_text(rows()).splitlines()
    text[1] = "32,8,,0.1,1,m,d"
    text[2] = "32,8,9,,1,m,d"
    found = fitted(tmp_path, "\n".join(text))
    assert found.energy.rows == found.run_time.rows == len(text) - 2
    assert found.left_out == {"without energy": 1}


def test_nearly_dependent_columns_are_warned_of(tmp_path):
    narrow = [r for r in rows(repeats=9) if r[0] == 900]
    shifted = [
        (p + 4 * (k % 9), o, ENERGY[0] * (p + 4 * (k % 9)) + ENERGY[1] * o, s, b)
        for k, (p, o, _, s, b) in enumerate(narrow)
    ]
    found = fitted(tmp_path, csv_text(shifted))
    assert found.energy.condition_number > 30
    assert "ill-conditioned" in found.energy.warnings[0]


def one_line(**cells):
    """A good file in which the second row has these cells."""
    lines = csv_text(rows()).splitlines()
    names = HEADER.split(",")
    changed = dict(zip(names, lines[2].split(","), strict=True)) | cells
    return "\n".join([*lines[:2], ",".join(changed[name] for name in names), *lines[3:]])


def scaled(energy=1.0, time=1.0):
    return csv_text([(p, o, energy * j, time * s, b) for p, o, j, s, b in rows()])


REFUSED = {
    "no rows": (HEADER, ConfigError, "no rows; expected prompt_tokens"),
    "another header": ("tin,tout,mJ\n1,2,3", ConfigError, "line 1: no column prompt_tokens, outp"),
    "too few rows": (csv_text(rows()[:12]), NotFitted, "joules: 12 rows of 6 distinct .* 20 rows"),
    "one setting": (csv_text(rows()[:1] * 50), NotFitted, "50 rows of 1 distinct"),
    "constant prompt": (
        csv_text([(64, *r[1:]) for r in rows()], WITHOUT_BATCH),
        NotFitted,
        "distinct",
    ),
    "constant output": (
        csv_text([(r[0] + k, 16, *r[2:]) for k, r in enumerate(rows())]),
        NotFitted,
        "output_tokens is 16 in every row",
    ),
    "constant input": (
        csv_text([(16, r[1] + k, *r[2:]) for k, r in enumerate(rows())]),
        NotFitted,
        "prompt_tokens is 16 in every row",
    ),
    "collinear lengths": (
        csv_text([(2 * (r[1] + k), r[1] + k, *r[2:]) for k, r in enumerate(rows())]),
        NotFitted,
        "prompt_tokens and output_tokens cannot be told apart",
    ),
    "NaN": (one_line(joules="nan"), ConfigError, "line 3: joules 'nan'; expected a number"),
    "infinite": (one_line(run_time_s="inf"), ConfigError, "line 3: run_time_s 'inf'"),
    "negative energy": (one_line(joules="-4"), ConfigError, "line 3: joules -4; expected a numb"),
    "no energy as 0": (one_line(joules="0"), ConfigError, "joules 0; .* empty where not known"),
    "half a token": (one_line(prompt_tokens="7.5"), ConfigError, "line 3: prompt_tokens 7.5"),
    "batch below 1": (one_line(batch="0.5"), ConfigError, "line 3: batch 0.5; expected a number"),
    "two models": (one_line(model="other"), ConfigError, r"2 models in one file: m \(71 .*other"),
    "two devices": (one_line(device="B200"), ConfigError, r"2 devices in one file: B200 \(1 rows"),
    "milliseconds": (scaled(time=1e3), ConfigError, "s per token; allowed: .*milliseconds"),
    "millijoules": (scaled(energy=1e3), ConfigError, "W; allowed: .* millijoules"),
    "kilowatt-hours": (scaled(energy=1 / 3.6e6), ConfigError, "W; allowed: .* watt-hours"),
    "no energy at all": (
        csv_text([(*r[:2], "", *r[3:]) for r in rows()]),
        NotFitted,
        "joules is known of no request",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused_with_the_reason(tmp_path, case):
    text, error, reason = REFUSED[case]
    with pytest.raises(error, match=reason) as caught:
        fitted(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "requests.csv"))
    assert "\n" not in str(caught.value)


def test_one_of_several_models_is_chosen_by_name(tmp_path):
    path = tmp_path / "requests.csv"
    second = csv_text(rows((0.1, 1.0, 1e-4, 9.0)), model="big").split("\n", 1)[1]
    path.write_text(csv_text(rows()) + second)
    big = fit_workload(read_observations(path, "big"))
    assert values(big.energy) == pytest.approx((0.1, 1.0, 1e-4, 9.0), rel=1e-6)
    with pytest.raises(ConfigError, match=r"--model small: allowed, in .*: big \(72 rows\), m"):
        read_observations(path, "small")


def test_a_request_log_is_fitted_and_its_batch_comes_from_the_overlaps(tmp_path):
    alone = [(p, o, j, s, 1) for p, o, j, s, b in rows(noise=0.02) if b == 1]
    found = fit_workload(read_observations(write_log(tmp_path / "log", alone * 2)))
    assert found.device == "gpu"
    assert "the batch is 1 in every row" in found.batch
    assert found.workload.request_joules(900, 60) == pytest.approx(
        0.02 * 900 + (0.15 + 3.0) * 60 + 4e-5 * 900 * 60, rel=0.05
    )
    assert found.run_time.held_out_median_ratio < 0.05


def logged(folder, *lines):
    (folder / "a.requests.jsonl").write_bytes(b"".join(ENCODER.encode(r) + b"\n" for r in lines))
    return folder


def at(number, begin_s, end_s, **changes):
    times = {"start": START + timedelta(seconds=begin_s), "end": START + timedelta(seconds=end_s)}
    return row(number, **times, **{"queue_s": 0.0, **changes})


def test_the_batch_of_a_logged_request_is_the_harmonic_mean_over_its_life(tmp_path):
    """0..4 s with a neighbour in 2..4 s: mean of 1/n is .75. Another replica does not count, an
    aborted request does, and the wait in the queue is not in the batch."""
    table = read_log(
        logged(
            tmp_path,
            at(1, 0, 4),
            at(2, 0, 6, queue_s=2.0, outcome="aborted", prompt_tokens=None, output_tokens=None),
            at(3, 0, 9, replica="other"),
        ),
        None,
    )
    assert shared_batches(table) == pytest.approx([1 / 0.75, 1 / 0.75, 1.0])


def test_a_row_of_several_sequences_counts_as_so_many_neighbours(tmp_path):
    table = read_log(logged(tmp_path, at(1, 0, 4), at(2, 0, 4, num_sequences=3)), None)
    assert shared_batches(table) == pytest.approx([4.0, 4.0])


def test_the_draw_of_a_request_is_its_part_of_the_batch(tmp_path):
    """5 mW a request are no watt-hours where some hundreds share the device."""
    shared = [(p, o, 0.005 * s, s, 50 * b) for p, o, _, s, b in rows(noise=0.1)]
    assert fitted(tmp_path, csv_text(shared)).valid["batch"].most == 800
    with pytest.raises(ConfigError, match="watt-hours"):
        fitted(tmp_path, csv_text(shared, WITHOUT_BATCH))


def test_a_log_says_what_it_left_out(tmp_path):
    known = [(p, o, j, s, 1) for p, o, j, s, b in rows() if b == 1]
    folder = write_log(tmp_path / "log", known * 2)
    extra = [
        row(1, **NO_ENERGY),
        row(2, coverage_ratio=0.5, device_joules={"gpu": 12.0}),
        row(6, joules=0.0, device_joules={"gpu": 0.0}),
        row(3, num_sequences=4, device_joules={"gpu": 12.0}),
        row(4, outcome="aborted", output_tokens=None, device_joules={"gpu": 12.0}),
        row(5, outcome="rejected", **NO_ENERGY),
    ]
    (folder / "b.requests.jsonl").write_bytes(b"".join(ENCODER.encode(r) + b"\n" for r in extra))
    found = read_observations(folder)
    assert found.left_out == {
        "of several sequences in one row": 1,
        "without an answer, so of unknown lengths": 1,
        "without energy, or metered in part": 3,
    }


def test_cached_prompt_tokens_do_not_count(tmp_path):
    found = read_observations(logged(tmp_path, row(1, prompt_tokens=100, cached_tokens=64)))
    assert found.prompt_tokens.tolist() == [36.0]


def test_logs_of_several_models_or_devices_are_refused(tmp_path):
    two = logged(tmp_path, row(1, model="m1"), row(2, model="m2"), row(3, model="m2"))
    with pytest.raises(
        ConfigError, match=r"2 models: m1 \(1 requests\), m2 \(2 requests\); choose"
    ):
        read_observations(two)
    assert read_observations(two, "m2").model == "m2"
    with pytest.raises(ConfigError, match="--model m3: allowed"):
        read_observations(two, "m3")
    mixed = logged(tmp_path, row(1), row(2, device_joules={"cpu": 12.0}))
    with pytest.raises(ConfigError, match=r"2 sets of devices .*cpu\+gpu \(1 requests\), cpu"):
        read_observations(mixed)


def test_the_fit_is_plain_data(tmp_path):
    document = json.loads(json.dumps(asdict(fitted(tmp_path, csv_text(rows()))), allow_nan=False))
    assert document["workload"]["alpha1_joules_per_output_token"] == pytest.approx(ENERGY[1])
    assert document["energy"]["terms"][3]["column"] == "output_tokens/batch"
