"""Figures and pages from rows: means, ratios, marks, and nothing that is not in the rows."""

import math
import statistics

import pytest

from serve_app.results.cells import CELLS_FILE, Variation, load_cells
from serve_app.results.claims import claims
from serve_app.results.figures import Results, geometric_mean, half_width
from serve_app.results.report import markdown, summary
from serve_app.results.tasks import LEVERS, tasks_of

CELL = ("8b", "chat")


def row(
    role, joules, seed=0, response="profile", attained=0.995, part="whole", load="chat", **more
):
    return {
        "role": role, "model": "8b", "load": load, "cap_response": response, "seed": seed,
        "part": part, "played": "recorded requests", "quick": False, "joules_per_request": joules,
        "slo_attainment_ratio": attained, "mean_replicas": 3.0, "scale_actions": 4,
        "limit_actions": 5, "cap_actions": 6, **more,
    }  # fmt: skip


def test_the_geometric_mean():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)
    assert geometric_mean([]) is None


def test_the_interval_is_students():
    values = [10.0, 11.0, 13.0]
    wanted = 4.302653 * statistics.stdev(values) / math.sqrt(3)  # t(0.975, 2), from a table
    assert half_width(values) == pytest.approx(wanted, rel=1e-6)
    assert half_width([1.0]) is None


def test_ratios_are_per_seed_and_a_limitless_run_stands_for_every_response():
    results = Results(
        [
            row("ray", 100.0), row("ray", 200.0, 1),
            row("energy_slo", 50.0), row("energy_slo", 120.0, 1),
            row("energy_slo", 40.0, response="h100"), row("energy_slo", 100.0, 1, response="h100"),
        ]
    )  # fmt: skip
    assert results.ratio("energy_slo", "ray", CELL, "profile") == pytest.approx(0.55)
    assert results.ratio("energy_slo", "ray", CELL, "h100") == pytest.approx(0.45)
    assert results.ratio("ray", "energy_slo", CELL, "profile") == pytest.approx((2 + 5 / 3) / 2)
    figure = results.figure("energy_slo", CELL, "profile")
    assert figure.joules_per_request == 85.0
    assert figure.seeds == 2
    assert results.figure("pals", CELL, "profile") is None
    found = {claim.text: claim for claim in claims(results, [CELL])}
    over = found["over tuned Ray, 8b/chat"]
    assert (over.found, over.verdict) == (pytest.approx(0.55), "held")  # the worse response
    assert found["over the clairvoyant run, geometric mean"].verdict == "not run"


def test_excerpts_are_compared_with_excerpts():
    results = Results(
        [
            row("ray", 100.0), row("ray", 300.0, part="excerpts"),
            row("energy_slo", 50.0), row("energy_slo", 240.0, part="excerpts"),
            row("pals", 270.0, part="excerpts"),
        ]
    )  # fmt: skip
    assert results.ratio("energy_slo", "ray", CELL, "profile") == pytest.approx(0.5)
    assert results.ratio("pals", "ray", CELL, "profile") == pytest.approx(0.9)
    assert results.ratio("energy_slo", "pals", CELL, "profile") == pytest.approx(240 / 270)
    assert results.figure("pals", CELL, "profile").sampled


def peers(default, hindsight):
    names = ("wva", "dynamollm", "throttllem", "pals", "agft")
    return [row(name, default) for name in names] + [
        row(f"{name}, hindsight", hindsight) for name in names
    ]


def test_the_best_peer_is_the_cheapest_that_attains():
    rows = [row("ray", 100.0), row("energy_slo", 50.0), *peers(60.0, 49.0)]
    rows[2] = row("wva", 40.0, attained=0.9)
    found = {claim.text: claim for claim in claims(Results(rows), [CELL])}
    by = {
        text: claim for text, claim in found.items() if text.startswith("over the best peer")
    }.values()
    without, tuned = by
    assert (without.found, without.verdict) == (pytest.approx(50 / 60), "held")
    assert (tuned.found, tuned.verdict) == (pytest.approx(50 / 49), "held")


def test_where_no_peer_attains_there_is_nobody_to_be_better_than():
    rows = [row("ray", 100.0), row("energy_slo", 50.0), *peers(60.0, 49.0)]
    rows = [one | {"slo_attainment_ratio": 0.9} if "," in one["role"] else one for one in rows]
    found = {claim.text: claim for claim in claims(Results(rows), [CELL])}
    told = found["over the best peer with hindsight that attains, the worst cell"]
    assert told.verdict == "held: none of them attains"
    without = [one for one in rows if one["role"] != "agft, hindsight"]
    found = {claim.text: claim for claim in claims(Results(without), [CELL])}
    assert found[told.text].verdict == "not run"


def test_a_miss_is_a_miss():
    rows = [row("ray", 100.0), row("energy_slo", 90.0, attained=0.985)]
    found = {claim.text: claim for claim in claims(Results(rows), [CELL])}
    assert found["attainment, the worst cell"].verdict == "missed"
    assert found["over tuned Ray, 8b/chat"].verdict == "missed"


@pytest.fixture
def cells():
    return load_cells(None, wanted="8b/chat,8b/chat-x8")


def test_the_page_says_simulated_and_marks_what_misses(cells):
    rows = [
        row("ray", 100.0), row("ray", 110.0, 1), row("energy_slo", 60.0), row("energy_slo", 62.0, 1),
        row("wva", 55.0, attained=0.9), row("ray", 100.0, load="chat-x8"),
        row("lever: power limit", 70.0, load="chat-x8"), row("bound", 20.0, slo_attainment_ratio=None),
    ]  # fmt: skip
    page = markdown(Results(rows), cells, "COMMAND", 3)
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert "8b-instruct@h100, simulated" in page
    assert "| wva | 55 (0.55) † | not run |" in page
    assert "| **energy_slo** | 61 ±13 (0.58) | not run |" in page
    assert "| lower bound | 20 (0.20) | not run |" in page
    assert "| power limit | 70 (0.70), 99.50% |" in page
    assert "**3 rows were left out" in page
    assert "Written by `COMMAND`" in page
    for heading in (line for line in page.splitlines() if line.startswith("## Each")):
        assert "simulated" in heading
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
    assert "pictures/" not in page  # no row holds its course over time
    text = summary(Results(rows), cells[:1], "LINK")
    assert "| 8b/chat [99.50%] | 0.58 |" in text
    assert text.endswith("LINK")
    assert "simulated" in text


def test_a_page_of_few_rows_has_no_empty_table_and_links_only_pictures_that_are_drawn(cells):
    rows = [row("energy_slo", 60.0, series={"time_s": [0.0]}), row("ray", 100.0)]
    page = markdown(Results(rows), [*cells, *load_cells(None, wanted="70b/chat")], "COMMAND", 3)
    assert "(pictures/8b-chat.png)" in page
    assert page.count("pictures/") == 1
    assert page.count("Not run.") == 4  # 70b: its table and what was done; levers, beliefs
    assert "not run, ?" not in page


def test_the_cells_are_those_of_the_issue():
    cells = load_cells(None)
    assert {cell.name for cell in cells} == {
        f"{model}/{load}"
        for model in ("8b", "70b")
        for load in ("chat", "chat-x8", "code-day", "chat-day", "code-bursty")
    }
    assert {cell.file.models[cell.model].kv.tokens for cell in cells} == {420_000, 440_000}
    assert all("published figures" in cell.played for cell in cells)
    by_name = {cell.name: cell for cell in cells}
    seventy = by_name["70b/code-bursty"].scenario("h100", 3, Variation(cold_start_s=180.0))
    assert (seventy.max_num_batched_tokens, seventy.cold_start_s, seventy.seed) == (1024, 180.0, 3)
    # A full step of 2,048 tokens alone is above the TPOT target, one of 1,024 below: the file's word.
    latency = seventy.truth.latency
    assert latency.step_time_s(1.0, 2048.0, 2048.0, 2048.0**2 / 2) > seventy.slo.tpot_s
    assert latency.step_time_s(1.0, 1024.0, 1024.0, 1024.0**2 / 2) < seventy.slo.tpot_s
    assert CELLS_FILE.is_file()


def test_bursts_are_made_higher_and_data_is_named(tmp_path):
    (tmp_path / "traces").mkdir()
    file = tmp_path / "traces" / "azure_2023_conv.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,100,10\n5,200,20\n")
    cells = {cell.name: cell for cell in load_cells(tmp_path)}
    chat, bursty = cells["8b/chat"], cells["8b/code-bursty"]
    assert chat.played == "recorded requests"
    assert chat.block(0, Variation()).rows == 2
    digest = chat.digest(Variation())
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,100,10\n5,200,21\n")
    assert chat.digest(Variation()) != digest
    _, options = bursty.trace_facts(Variation(burst_ratio=1.5))
    assert options.bursts.burst_factor == 6.0
    assert bursty.digest(Variation()) != bursty.digest(Variation(burst_ratio=1.5))


def test_the_headline_comes_first_and_every_row_once():
    tasks = tasks_of(load_cells(None))
    stages = [task.stage for task in tasks]
    assert stages == sorted(stages)
    assert {task.kind for task in tasks if task.stage == 0} == {"baseline", "ours"}
    assert len({task.name for task in tasks}) == len(tasks)
    assert {task.detail for task in tasks if task.kind == "lever"} == set(LEVERS)
