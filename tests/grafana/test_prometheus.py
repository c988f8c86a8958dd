"""A real Prometheus that scraped the product's exposition answers every expression with series."""

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from dashboards import FILES, load, queries, replaced, variables
from installed import installed
from served_replicas import Application, scrape_url

PROMETHEUS = installed("prometheus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROMETHEUS is None, reason="no prometheus here: scripts/test_tools.sh fetches one"
    ),
]
CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs:
- {{job_name: jouleserve, static_configs: [{{targets: ['{target}']}}]}}
"""
SCRAPES = 8  # 4 s: all ranges that are asked for


class Prometheus:
    """A server on the loopback with its data in `folder`."""

    def __init__(self, folder, target):
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(target=target))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{address}/api/v1/"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip

    def ask(self, what, **parameters):
        """The data of an answer; AssertionError with Prometheus' words for one that it refuses."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}{what}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refused:
            raise AssertionError(refused.read().decode()) from None

    def wait_for_scrapes(self, count, timeout_s=20.0):
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            assert self.process.poll() is None, self.log.read_text()
            try:
                result = self.ask("query", query="sum_over_time(up[1m])")["result"]
            except OSError:
                result = []
            if result and float(result[0]["value"][1]) >= count:
                return
            time.sleep(0.2)
        raise AssertionError(f"not scraped {count} times: {self.log.read_text()}")

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    application = Application(tmp_path_factory.mktemp("no_powercap"))
    with scrape_url(application) as target:
        server = Prometheus(tmp_path_factory.mktemp("prometheus"), target)
        try:
            server.wait_for_scrapes(SCRAPES)
            yield server
        finally:
            server.stop()
            application.close()


@pytest.fixture(scope="module")
def now_s(prometheus):
    return time.time()


def test_every_expression_finds_series_with_what_its_legend_names(prometheus, now_s):
    faults = {str(query): fault(query, prometheus, now_s) for query in queries()}
    assert {query: said for query, said in faults.items() if said} == {}


def fault(query, prometheus, now_s):
    """What is wrong with the answer; None: nothing."""
    try:
        data = prometheus.ask("query_range", query=query.expr, start=now_s - 2, end=now_s, step=1)
    except AssertionError as refused:
        return str(refused)
    if not any(value != "NaN" for series in data["result"] for _, value in series["values"]):
        return "no series, or NaN alone"
    named = re.findall(r"\{\{(\w+)\}\}", query.legend)
    missing = {
        label for label in named for series in data["result"] if label not in series["metric"]
    }
    return f"no label {missing}" if missing else None


def test_every_variable_offers_values(prometheus):
    for board in map(load, FILES):
        for one in variables(board).values():
            if one["type"] == "query":
                query = replaced(one["query"]["query"], board)
                selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
                assert prometheus.ask(f"label/{label}/values", **{"match[]": selector}), query


def test_figures_are_those_of_what_was_recorded(prometheus, now_s):
    """450 W are metered per replica; one request of four misses, and one is refused."""
    found = {}
    for query in queries():
        if query.dashboard == "jouleserve-fleet":
            data = prometheus.ask("query", query=query.expr, time=now_s)["result"]
            found[query.panel, query.legend] = {
                tuple(one["metric"].values()): float(one["value"][1]) for one in data
            }
    (attained,) = found["Do the SLOs hold?", "__auto"].values()
    assert attained == pytest.approx(0.5, abs=0.01)
    (silent,) = found["Is any meter silent?", "__auto"].values()
    assert silent == 2  # RAPL, of two replicas
    drawn = found["How much power is drawn, and how is it known?", "{{device}}, {{source}}"]
    assert drawn["gpu", "counter"] == pytest.approx(800.0, rel=0.1)
    assert drawn["cpu", "estimated"] == pytest.approx(100.0, rel=0.1)
    (cost,) = found["What has a request cost?", "__auto"].values()
    (now,) = found[
        "What does a request cost now, and what does the model say it should?", "metered"
    ].values()
    assert cost == pytest.approx(now, rel=0.2)
    (burn,) = found["How fast is the error budget spent?", "__auto"].values()
    assert burn == pytest.approx(50.0, rel=0.1)
