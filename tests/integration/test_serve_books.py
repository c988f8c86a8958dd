"""The books of the running service: every joule of the meter, every request once."""

from __future__ import annotations

import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from monitoring_tools import promtool
from prometheus_client.parser import text_string_to_metric_families
from running_service import DEPLOYMENT, MODEL, eventually
from serve_checks import CHAT, COMPLETIONS, PARIS, check_books, check_energy

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420)]


def test_a_client_that_leaves_is_counted_once_and_pays(service):
    labels = {"outcome": "abort"}
    aborted = service.counted("jouleserve_requests_total", **labels)
    before = service.at_rest()
    stream = service.stream(CHAT, messages=PARIS, max_tokens=1500, ignore_eos=True)
    for _ in range(4):
        next(stream)
    stream.close()  # closes the connection

    def seen():
        return service.counted("jouleserve_requests_total", **labels) > aborted

    eventually(seen, 15, "the abort is counted")
    after = service.at_rest()  # nothing runs any more
    time.sleep(2.5)  # two more pushes
    assert service.counted("jouleserve_requests_total", **labels) == aborted + 1
    assert after["attributed_joules"] > before["attributed_joules"]
    check_books(service.at_rest())


def test_the_energy_of_all_answers_and_idle_is_the_meter(service):
    def ask(i):
        body = {"max_tokens": 10 + 3 * (i % 10), "ignore_eos": True}
        if i % 3 == 0:
            answer = service.post(COMPLETIONS, prompt=[f"Story {i}:", f"Tale {i}:"], **body)
            return check_energy(answer["energy"])
        if i % 3 == 1:
            return check_energy(service.chat(f"Tell me about {i}.", **body)["energy"])
        messages = [{"role": "user", "content": f"Tell me about {i}."}]
        events = list(service.stream(CHAT, messages=messages, **body))
        return check_energy(json.loads(events[-2].removeprefix(": energy ")))

    before = service.at_rest()
    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(ask, range(30)))
    after = service.at_rest()
    used = {k: after[k] - before[k] for k in after if k.endswith("_joules")}
    assert used["meter_joules"] > 10
    told = sum(answered) + used["idle_joules"] + used["unattributed_joules"]
    assert told == pytest.approx(used["meter_joules"], rel=0.01)
    assert sum(answered) == pytest.approx(used["attributed_joules"], rel=0.01)
    assert sum(answered) > 0.5 * used["meter_joules"]  # a busy time: most of it is the answers'
    check_books(after)


SECRET_WORD, KEY = "xylophone-47", "sk-live-0123456789"


def test_the_request_log_holds_what_the_answers_were_told_and_no_word_of_them(service):
    def ask(i, **options):
        if i % 3 == 0:
            prompts = [f"{SECRET_WORD} {i}", f"{SECRET_WORD} again {i}"]
            return service.post(COMPLETIONS, prompt=prompts, **options)["energy"]["joules"]
        if i % 3 == 1:
            return service.chat(f"{SECRET_WORD} {i}?", n=2, **options)["energy"]["joules"]
        messages = [{"role": "user", "content": f"{SECRET_WORD} {i}"}]
        events = list(service.stream(CHAT, messages=messages, **options))
        return json.loads(events[-2].removeprefix(": energy "))["joules"]

    told = {}
    for team in ("blue", "green"):
        body = {"user": team, "max_tokens": 6, "ignore_eos": True, "temperature": 0.5}
        with ThreadPoolExecutor(6) as pool:
            told[team] = sum(pool.map(lambda i, b=body: ask(i, **b), range(6)))
    leaving = service.stream(CHAT, messages=PARIS, max_tokens=1500, ignore_eos=True, user="red")
    next(leaving)
    leaving.close()
    content = [{"role": "user", "content": SECRET_WORD}]
    body = {"model": MODEL, "messages": content, "max_tokens": 2}
    head = {"Authorization": f"Bearer {KEY}"}
    assert service.request("POST", CHAT, body, head)[0] == 200
    assert service.request("POST", CHAT, {**body, "max_tokens": 10**6}, head)[0] == 400

    def logged():
        groups = service.report("--by", "tenant,outcome")["groups"]
        found = {(g["tenant"], g["outcome"]): g for g in groups}
        key_hash = hashlib.sha256(KEY.encode()).hexdigest()[:16]
        wanted = {("red", "aborted"), (key_hash, "completed"), (key_hash, "rejected")}
        teams = [found.get((team, "completed"), {"requests": 0})["requests"] for team in told]
        return found if wanted <= found.keys() and teams == [6, 6] else None

    found = eventually(logged, 10, "all rows are in the request log", every_s=0.5)
    for team, joules in told.items():
        group = found[team, "completed"]
        assert group["joules"] == pytest.approx(joules, rel=1e-6)
        assert group["output_tokens"] == 2 * 12 + 2 * 12 + 2 * 6  # two prompts, two samples, one
        assert group["energy_known_ratio"] == 1
    assert found["red", "aborted"]["joules"] > 0
    written = b"".join(path.read_bytes() for path in service.request_log.iterdir())
    assert b'"blue"' in written
    assert SECRET_WORD.encode() not in written
    assert KEY.encode() not in written

    def counted():
        rows = service.counted("jouleserve_request_log_rows_total", fate="written")
        return rows == service.report()["total"]["requests"]

    eventually(counted, 15, "the metric has counted all rows", every_s=0.5)


def test_metrics_are_readable_and_hold_no_request_ids(service):
    answer = service.chat("Hi", max_tokens=2)
    status, headers, body = service.request("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(body.decode())}
    assert {"jouleserve_energy_joules", "jouleserve_requests", "jouleserve_power_watts",
            "jouleserve_time_to_first_token_seconds", "jouleserve_max_num_active_seqs"} <= set(families)  # fmt: skip
    assert all(name.startswith("jouleserve_") for name in families)
    samples = [sample for family in families.values() for sample in family.samples]
    assert {s.labels["deployment"] for s in samples} == {DEPLOYMENT, "OpenAiIngress"}  # the gate's
    values = {value for s in samples for value in s.labels.values()}
    assert not [v for v in values if re.search(r"cmpl-|[0-9a-f]{8}-[0-9a-f]{4}-", v)]
    assert answer["id"] not in body.decode()
    # The counter and the books are the same joules.
    metered = sum(s.value for s in families["jouleserve_energy_joules"].samples)
    assert metered == pytest.approx(service.energy()["meter_joules"], rel=0.05)
    assert max(abs(s.value) for s in families["jouleserve_energy_residual_joules"].samples) < 1e-3
    assert service.request("GET", "/jouleserve/metrics")[0] == 200


def test_promtool_finds_no_fault_in_the_metrics(service):
    done = promtool("check", "metrics", input=service.metrics())
    assert done.returncode == 0, done.stdout + done.stderr
