"""A held batch in the simulator: against a formula, and against the published rows themselves."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import test_published as tables

from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel
from serve_app.profiler.report import write_profile
from serve_app.published.facts import load_facts
from serve_app.published.held_batch import Held, held_batch
from serve_app.published.run import fit_published
from serve_app.published.simulated import PROFILES, compare, main, markdown

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
DATA = os.environ.get("JOULESERVE_TEST_DATA")
T0, A, B_, C, Q = 0.008, 5e-5, 3e-8, 2e-5, 1e-9
E0, E1, E2, E3, E4 = 3.0, 0.05, 3e-5, 0.015, 7e-7
MODEL = FittedModel(
    name="planted", model="m", device="d",
    latency=LatencyModel(
        t0_s=T0, a_s_per_seq=A, b_s_per_kv_token=B_, c_s_per_prefill_token=C,
        q_s_per_attended_pair=Q,
    ),
    power=PowerModel(
        idle_watts=120.0, e0_joules_per_step=E0, e1_joules_per_seq=E1, e2_joules_per_kv_token=E2,
        e3_joules_per_prefill_token=E3, e4_joules_per_attended_pair=E4,
    ),
    valid=ValidRange(max_num_seqs=512, max_context_tokens=8192, max_prompt_tokens=8192),
    residuals=Residuals(
        step_time_median_ratio=0.0, step_time_p95_ratio=0.0, energy_median_ratio=0.0, samples=99
    ),
)  # fmt: skip
PROMPT, OUTPUT = 230, 400


def per_token(fixed, seq, kv, prefill, pair, batch):
    """One place of B is taken for as many steps as a request makes tokens: the first step computes
    its prompt, step k > 0 reads the prompt and the k - 1 tokens before it. A step is shared by B
    places; the rest of a request's cost is its own."""
    contexts = PROMPT + sum(PROMPT + k - 1 for k in range(1, OUTPUT))
    own = OUTPUT * seq + contexts * kv + PROMPT * prefill + PROMPT**2 / 2 * pair
    return fixed / batch + own / OUTPUT


@pytest.mark.parametrize("batch", [1, 8, 64, 256])
def test_a_held_batch_costs_what_the_formula_says(batch):
    held = Held(batch=batch, prompt_tokens=PROMPT, output_tokens=float(OUTPUT))
    found = held_batch(MODEL, held)
    joules = per_token(E0, E1, E2, E3, E4, batch)
    seconds = per_token(T0, A, B_, C, Q, batch)
    assert found.joules_per_token == pytest.approx(joules, rel=2e-3)
    assert found.tokens_per_s == pytest.approx(1.0 / seconds, rel=5e-3)


def test_lengths_have_the_mean_that_was_asked_for():
    held = Held(batch=4, prompt_tokens=10, output_tokens=99.25)
    assert held.outputs(400)[4:].mean() == pytest.approx(99.25)
    assert held.outputs(0).tolist() == [25, 50, 75, 100]
    spread = replace(held, spread=True).outputs(40_000)[4:]
    assert spread.mean() == pytest.approx(99.25, rel=0.02)
    assert spread.std() == pytest.approx(99.25, rel=0.03)  # geometric: as wide as its mean


def test_spread_lengths_read_a_longer_context():
    """Of geometric lengths E[T (T - 1) / 2] is mean^2 - mean: twice that of equal ones, nearly."""
    held = Held(batch=64, prompt_tokens=PROMPT, output_tokens=float(OUTPUT))
    equal, spread = held_batch(MODEL, held), held_batch(MODEL, replace(held, spread=True))
    wanted = E2 * (OUTPUT - OUTPUT / 2)
    assert spread.joules_per_token - equal.joules_per_token == pytest.approx(wanted, rel=0.1)


@pytest.fixture
def planted(tmp_path):
    tables.write(tmp_path / "energy" / "mlenergy_v3_steady_state.csv", tables.energy_rows())
    idle = [{"gpu": "NVIDIA H100 80GB HBM3", "phase": "phase1_0gb", "p": 120.0}]
    tables.write(tmp_path / "energy" / "idle_power_by_phase.csv", idle)
    for origin in load_facts().latency:
        tables.latency_tables(tmp_path / "latency" / origin.folder)
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (model,) = fit_published(tmp_path, "2026-01-01").models
    write_profile(model, profiles / f"{model.name}.yaml", "planted", "planted")
    return tmp_path


def test_planted_rows_are_met_and_the_page_says_which_is_measured(planted):
    page = planted / "page.md"
    arguments = [str(planted), "--profiles", str(planted / "profiles"), "--report", str(page)]
    assert main(arguments) == 0
    found = compare(fit_published(planted, "2026-01-01"), planted / "profiles")
    assert [one.row.batch for one in found] == list(tables.BATCHES)
    for one in found:
        batch = one.row.batch
        joules = tables.E0 / batch + tables.E1
        seconds = tables.T0_S + (tables.PER_SEQ_S + tables.PROMPT_S / tables.OUTPUT) * batch
        assert one.shipped.joules_per_token == pytest.approx(joules, rel=0.01)
        assert one.left_out.joules_per_token == pytest.approx(joules, rel=0.01)
        assert one.shipped.tokens_per_s == pytest.approx(batch / seconds, rel=0.01)
    text = page.read_text()
    assert "J/token measured | J/token simulated" in text
    assert "6 of 6 rows" in text


def test_a_row_that_is_missed_is_named(planted, capsys):
    path = planted / "profiles" / "llama-3.1-8b-instruct@h100.yaml"
    text = path.read_text()
    line = next(one for one in text.splitlines() if "e0_joules_per_step" in one)
    path.write_text(text.replace(line, line.split(":")[0] + ": 4.0"))  # 29 % too much per step
    assert main([str(planted), "--profiles", str(path.parent)]) == 1
    told = capsys.readouterr().out
    assert "- **missed**: llama-3.1-8b-instruct@h100 at 8: +" in told
    assert main([str(planted), "--profiles", str(planted / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.skipif(
    not DATA, reason="JOULESERVE_TEST_DATA does not name the folder with the tables"
)
def test_the_published_rows_are_met_within_a_tenth():
    """J per output token at 8 to 256 sequences, with the shipped profiles and with those that have
    not seen the row."""
    outcome = fit_published(Path(DATA), "2026-01-01")
    found = compare(outcome, PROFILES)
    assert len({one.profile for one in found}) == 6
    for one in found:
        assert abs(one.error_ratio) <= 0.10, (one.profile, one.row.batch)
        assert abs(one.left_out_error_ratio) <= 0.10, (one.profile, one.row.batch)
        assert abs(one.speed_error_ratio) <= 0.10, (one.profile, one.row.batch)
    assert "are within 10%" in markdown(outcome, found, "COMMAND")
