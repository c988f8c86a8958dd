"""The routes over a ledger, as both ways in have them."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from told import DEPLOYMENT, told_ledger

from serve_app.decisions.record import differences, read_record, replayed
from serve_app.web.routes import ASSETS, add_routes


@pytest.fixture(scope="module")
def client():
    ledger, now_s = told_ledger()

    async def view(what, *arguments):
        answer = getattr(ledger, what)
        return answer(*arguments) if what == "records" else answer(*arguments, now_s)

    app = FastAPI()
    add_routes(app, view)
    return TestClient(app)


def test_the_page_and_all_that_it_needs_come_from_here(client):
    page = client.get("/energy")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    for name in ASSETS:
        answer = client.get(f"/energy/assets/{name}")
        assert answer.status_code == 200, name
        assert len(answer.content) > 500
    assert b"Plotly" in client.get("/energy/assets/charts.js").content
    assert client.get("/energy/assets/routes.py").status_code == 404
    assert client.get("/energy/assets/..%2froutes.py").status_code == 404


def test_the_data_of_the_page_agree_with_the_metrics(client):
    data = client.get("/energy/data?last=5").json()
    families = {
        f.name: f for f in text_string_to_metric_families(client.get("/jouleserve/metrics").text)
    }
    rows = data["history"][DEPLOYMENT]
    (watts,) = [s.value for s in families["jouleserve_power_watts"].samples]
    assert rows[-1]["draw_watts"] == {"gpu": watts}
    assert rows[-1]["joules_per_request"] == 60.0 / 5.0
    assert rows[-1]["attainment_ratio"] == 0.8
    assert rows[-1]["requested_replicas"] == 2
    (asked,) = [s.value for s in families["jouleserve_requested_replicas"].samples]
    assert data["fleet"][0]["requested_replicas"] == asked == 2
    (count,) = [s.value for s in families["jouleserve_fleet_decisions"].samples]
    assert count == 39
    assert len(data["requests"]) == 5
    assert data["requests"][0]["joules"] == 42.0
    assert [row["replica"] for row in data["decisions"]] == [None, "r0", "r0", "r0"]


def test_of_the_hour_only_what_is_new_is_sent_again(client):
    rows = client.get("/energy/data").json()["history"][DEPLOYMENT]
    since = rows[-3]["time_utc_s"]
    again = client.get(f"/energy/data?since_utc_s={since!r}").json()["history"][DEPLOYMENT]
    assert again == rows[-2:]  # with the rates of the minute before, which is not sent


def test_decisions_come_in_words_with_alternatives_and_outcomes(client):
    rows = client.get("/energy/decisions").json()
    newest = rows[1]
    assert newest["in_force"]
    assert newest["outcome"]["joules_per_request"] == 12.0
    assert newest["alternatives"]
    assert rows[2]["outcome"] is None or rows[2]["outcome"]["for_s"] == 0.0
    words = client.get("/energy/data").json()["decisions"][1]["words"]
    assert words["came"].endswith("12 J each, 80 % within the targets")
    assert "J/request" in words["expected"]
    assert words["move"]
    assert words["why"]


def test_records_from_the_wire_are_replayed_bit_for_bit(client):
    told = client.get("/jouleserve/decisions?last=3").json()
    assert len(told["records"]) == 3
    for one in told["records"]:
        record = read_record(json.dumps(one))
        assert differences(record, replayed(record, told["profiles"])) == []


@pytest.mark.parametrize("last", [-5, 0, 10**9])
def test_any_number_of_decisions_may_be_asked_for(client, last):
    assert client.get(f"/energy/decisions?last={last}").status_code == 200
    assert client.get("/energy/decisions?last=x").status_code == 422
