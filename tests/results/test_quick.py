"""One tiny cell from end to end, and once more without a run."""

import json

import pytest
import yaml

from serve_app.results.__main__ import main
from serve_app.results.cells import CELLS_FILE
from serve_app.sections import read_section

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
KINDS = "baseline,ours,limit,clairvoyant,peer,lever,variation"


@pytest.fixture
def files(tmp_path):
    facts = yaml.safe_load(CELLS_FILE.read_text())
    trace = tmp_path / "traces" / "azure_2023_conv.csv"
    trace.parent.mkdir()
    rows = "".join(f"{0.25 * k},{200 + 37 * k % 900},{5 + k % 40}\n" for k in range(1200))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    facts["models"] = {"8b": facts["models"]["8b"]}
    facts["cap_responses"] = ["profile"]
    load = facts["loads"]["chat"] | {"excerpts": [[60, 60]], "seeds": 2, "study": True}
    facts["loads"] = {"chat": load}
    path = tmp_path / "cells.yaml"
    path.write_text(yaml.safe_dump(facts))
    page = tmp_path / "README.md"
    page.write_text("# X\n<!-- policies:begin -->\nold\n<!-- policies:end -->\nrest\n")
    return tmp_path, path, page


def test_a_tiny_cell(files, monkeypatch):
    folder, cells, page = files
    out = folder / "out"
    arguments = [
        "--out", str(out), "--data", str(folder), "--cells-file", str(cells), "--jobs", "1",
        "--kinds", KINDS, "--readme", str(page),
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    by_role = {}
    for row in rows:
        by_role.setdefault(row["role"], []).append(row)
    assert {row["seed"] for row in by_role["energy_slo"]} == {0, 1}
    joules = {role: found[0]["joules_per_request"] for role, found in by_role.items()}
    attained = {role: found[0].get("slo_attainment_ratio") for role, found in by_role.items()}
    assert min(attained[role] for role in ("static", "ray", "ray_limit", "clairvoyant")) >= 0.99
    assert joules["ray_limit"] <= joules["ray"] * 1.001
    assert joules["ray"] <= joules["static"] * 1.001
    assert joules["ray"] <= joules["ray_default"]
    assert joules["bound"] < min(one for role, one in joules.items() if role != "bound")
    assert (out / "pictures" / "8b-chat.png").stat().st_size > 10_000
    assert "Each lever" in (out / "report.md").read_text()
    assert json.loads((out / "manifest.json").read_text())["simulated"]
    assert "8b/chat" in read_section(page, "policies")
    assert page.read_text().endswith("rest\n")

    (out / "results.jsonl").unlink()
    half = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    stored = folder / "stored"
    stored.mkdir()
    (stored / "runs.jsonl").write_text("".join(line for line in half if "energy_slo" not in line))
    assert main([*arguments, "--out", str(stored), "--stored"]) == 1  # ours is not there
    kept = {json.loads(one)["role"] for one in (stored / "results.jsonl").read_text().splitlines()}
    assert {"ray", "ray_limit", "wva"} <= kept
    assert "energy_slo" not in kept

    before = (out / "runs.jsonl").read_bytes()
    told = (out / "report.md").read_text()
    assert main(arguments) == 0
    assert (out / "runs.jsonl").read_bytes() == before
    assert (out / "report.md").read_text() == told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cells", "8b/nix"], "allowed: 8b/chat"),
        (["--kinds", "nix"], "allowed: baseline"),
        (["--jobs", "0"], "--jobs 0"),
        (["--seeds", "0"], "--seeds 0"),
        (["--readme", "nowhere.md"], "nowhere.md"),
        (["--stored", "--cells", "8b/chat"], "holds no whole row"),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, capsys, arguments, words):
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs.jsonl").exists()
