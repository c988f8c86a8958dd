"""The page, the decisions and their replay on the running service."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_service import BIN, DEPLOYMENT, eventually

from serve_app.decisions.log import read_decisions

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

from browser import Visit, browsing, needs_browser

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]
LIVE_S = 5.0  # from a request to the page


def told(service, path):
    status, _, answer = service.request("GET", path)
    assert status == 200, answer
    return json.loads(answer)


@needs_browser
def test_the_page_is_live_and_says_what_the_metrics_say(service, tmp_path):
    with browsing() as browser:
        visit = Visit(browser, service.url)
        visit.wait_for_charts()
        answer = service.chat("What is the capital of France?")
        asked_s = time.monotonic()
        name = answer["id"][-12:]
        visit.page.wait_for_selector(f"#requests td:has-text('{name}')", timeout=1e3 * LIVE_S)
        assert time.monotonic() - asked_s < LIVE_S
        row = visit.page.locator("#requests tr", has_text=name).inner_text().split("\t")
        assert float(row[6]) == pytest.approx(answer["energy"]["joules"], rel=0.01)
        assert int(row[3]) == answer["usage"]["completion_tokens"]
        service.at_rest()

        def agrees():
            samples = told(service, "/energy/data")["history"][DEPLOYMENT]
            return samples[-1]["requests"] == service.counted("jouleserve_requests_total")

        eventually(agrees, 15, "the page counts what the metrics count", every_s=0.5)
        assert visit.shown("replicas") == "1"
        assert visit.page.locator("#fleet tr").count() == 1
        visit.page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (visit.complaints, visit.strangers) == ([], [])
        visit.context.close()


def test_decisions_of_the_fleet_and_of_the_replica_are_told_with_their_metrics(service):
    def both():
        rows = told(service, "/energy/decisions?last=100")
        return {row["replica"] is None for row in rows} == {True, False} and rows

    rows = eventually(both, 70, "both decide", every_s=1.0)
    assert {row["deployment"] for row in rows} == {DEPLOYMENT}
    assert sum(row["in_force"] for row in rows) == 2  # those of a replica that is gone are not
    # Ray asks no policy while it still builds the application that a test before this has put back.
    eventually(
        lambda: service.counted("jouleserve_replicas", deployment=DEPLOYMENT) == 1,
        60,
        "the fleet tick tells its metrics",
        every_s=1.0,
    )
    assert service.counted("jouleserve_max_replicas", deployment=DEPLOYMENT) == 1
    assert service.counted("jouleserve_fleet_decisions_total", deployment=DEPLOYMENT) > 0


def test_every_decision_that_was_made_here_is_made_again_bit_for_bit(service):
    command = [BIN / "jouleserve", "explain", "--url", service.url, "--last", "512", "--json"]
    done = subprocess.run(
        [*command, "--replay"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(done.stdout)["replayed"]
    assert {one["replica"] is None for one in made} == {True, False}
    assert not [one for one in made if one["unknown"] or one["differences"]]
    kept = read_decisions(service.decision_log)
    assert {one["id"] for one in made} <= {record.id for record in kept.records}
    assert kept.outcomes


def test_in_approve_mode_the_batch_cap_waits_for_a_yes(service):
    """The policy wants a smaller batch than the engine's; an operator says yes by the id."""
    service.put(service.edited(user_config={"mode": "approve"}))

    def cap():
        (row,) = service.energy()["replicas"]
        return row["max_num_active_seqs"]

    eventually(lambda: cap() == 64, 20, "nothing is acted on")

    def waiting():
        service.chat("Count.", max_tokens=4)
        rows = told(service, "/energy/data?last=100")["decisions"]
        return [row for row in rows if row["replica"] and row["words"]["waits"]]

    row = eventually(waiting, 60, "a decision waits", every_s=1.0)[0]
    wanted = row["decision"]["proposed_max_num_active_seqs"]
    assert wanted != 64
    command = [BIN / "jouleserve", "approve", row["id"], "--url", service.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"at most {wanted} requests at a time" in done.stdout
    eventually(lambda: cap() == wanted, 15, "what was approved holds")
    service.put(service.config)
