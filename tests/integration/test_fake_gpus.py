"""Four fake GPUs under Ray, two replicas with a real engine: each meters its own GPU, and the fleet's
joules are those of the GPUs, over a load with one replica killed and one GPU lost on the way.

JOULESERVE_FLEET_LOAD_S: seconds of load, 45 where it is not set; 180 is the full proof.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
import pytest
from agents import AgentProcess
from gpu_fleet import (
    FakeGpus,
    Load,
    PowerPlay,
    Watch,
    gpu_joules,
    gpu_rows,
    replica_pids,
    two_replicas_with_a_gpu_each,
    visible_to,
)
from power_loop import load_of, phase, under_the_agent, working
from prometheus_client.parser import text_string_to_metric_families
from running_service import BIN, MODEL, alive, eventually, started
from serve_checks import PARIS, check_books

from serve_app.bench.options import BenchOptions

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(560)]
LOAD_S = float(os.environ.get("JOULESERVE_FLEET_LOAD_S", "45"))
LIMITS_LOAD_S = 20.0
TICKS_S = 2.0  # some ticks of the replicas (0.5 s each) and their way to the ledger
HELD_WATTS = 150  # at the loss: what its last, open interval costs at most is known
FAILOVER_S = 5.0  # until Serve sends no request to a replica that was killed


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """(service, GPUs): two replicas answer and are on the ledger."""
    folder = tmp_path_factory.mktemp("fleet")
    gpus = FakeGpus(folder, 4)
    agent = AgentProcess(folder / "agent", environ={**os.environ, **gpus.environment}).start()

    def edit(config):
        two_replicas_with_a_gpu_each(config)
        under_the_agent(folder, agent)(config)
        # In most of these tests the GPUs draw what no model says.
        config["applications"][0]["args"]["energy"]["model_correction"] = {"enabled": False}

    try:
        with started(folder, edit, gpus.environment) as service:
            eventually(lambda: len(gpu_rows(service)) == 2, 240, "two replicas report", every_s=1.0)
            yield service, gpus
        held = [gpu["holder"] for gpu in agent.client().status()["gpus"]]
        assert held == [None] * 4  # replicas that end give their leases back
    finally:
        gpus.fake.heal()
        assert agent.stop() == 0
    assert gpus.limits() == [700.0] * 4


def metered_indices(service, gpus):
    """Replica → index of the GPU that it meters."""
    return {name: gpus.uuids.index(row["id"]) for name, row in gpu_rows(service).items()}


def given_indices(service):
    """Replica → index of the GPU that Ray gave it."""
    return {name: int(visible_to(pid)) for name, pid in replica_pids(service).items()}


def test_each_replica_meters_the_gpu_that_ray_gave_it(fleet):
    service, gpus = fleet
    metered = metered_indices(service, gpus)
    assert metered == given_indices(service)
    assert len(set(metered.values())) == 2
    for index, row in enumerate(gpu_rows(service).values()):
        assert (row["source"], row["reason"], row["joules"]) == ("counter", None, 0.0), index
    cluster = service.cluster_status()["data"]["clusterStatus"]["loadMetricsReport"]
    assert cluster["usage"]["GPU"] == [2.0, 4.0]  # used and all


def limits_told(service):
    """Replica → its power limit, as the ledger shows it."""
    return {one["replica"]: one["power_limit"] for one in service.energy()["replicas"]}


def test_replicas_lower_their_limits_under_load_and_tell_so(fleet):
    """A real engine, slowed down as its fake GPU's limit says. What it saves, `make power-loop`
    measures; here, that the whole way is closed."""
    service, gpus = fleet
    with working(service, gpus) as threads:
        chosen = phase(service, gpus, threads, "active", load_of(service.url, LIMITS_LOAD_S))
        told = limits_told(service)
        command = [BIN / "jouleserve", "explain", "--url", service.url]
        explained = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert {one["actuator"] for one in told.values()} == {"agent"}
    assert all(one["available"] for one in told.values())
    assert all(name in explained.stdout for name in told)
    assert "700 W" in explained.stdout
    assert len(chosen.completed) == len(chosen.records) > 5
    samples = [sample for part in chosen.samples.values() for sample in part]
    assert min(limit for _, limit, *_ in samples) < 500.0
    assert all(draw <= limit + 1.0 for _, limit, draw, *_ in samples)
    families = {f.name for f in text_string_to_metric_families(service.metrics())}
    assert {"jouleserve_power_limit_held", "jouleserve_requested_power_limit_watts"} <= families
    for index in range(4):
        gpus.draw(index, 0)


def test_requests_one_after_the_other_go_to_one_replica(fleet):
    """The router fills replicas in a fixed order, once it is told how far."""
    service, _ = fleet
    names = list(gpu_rows(service))

    def answered():
        return [service.counted("jouleserve_requests_total", replica=name) for name in names]

    def ask(count):
        before = answered()
        for number in range(count):
            service.chat(f"Say {number}.", max_tokens=2)
        eventually(lambda: sum(answered()) == sum(before) + count, 15, "all are counted")
        return sorted(now - then for then, now in zip(before, answered(), strict=True))

    # A replica that has answered says what it may have; the routers hear it a second later.
    eventually(lambda: ask(8) == [0, 8], 60, "one replica gets all of them", every_s=2.0)
    assert ask(12) == [0, 12]  # by chance: once in 2048
    # Together they are more prompt tokens than may wait at the first.
    together = [f"{'Tell me a story. ' * 20}{i}" for i in range(16)]
    before = answered()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: service.chat(one, max_tokens=2), together))
    eventually(lambda: sum(answered()) == sum(before) + 16, 15, "all are counted")
    assert min(now - then for then, now in zip(before, answered(), strict=True)) >= 1


def test_a_power_budget_comes_live_sends_away_what_it_cannot_serve_and_goes(fleet):
    """420 W for the fleet, and a target that no request can meet under it."""
    service, gpus = fleet
    user = {"fleet_budget_watts": 420.0, "over_budget": "refuse", "slo": {"ttft_ms": 1}}
    service.chat("Count.", max_tokens=4)  # lengths are known
    service.put(service.edited(user_config=user))

    def kept():
        caps = [told["most_watts"] or 700.0 for told in limits_told(service).values()]
        watts = sorted(gpus.limits())[:2]
        return watts == [210.0, 210.0] and caps

    eventually(kept, 30, "each replica keeps to its share", every_s=0.5)

    def ask():
        body = {"model": MODEL, "messages": PARIS, "max_tokens": 4}
        return service.request("POST", "/v1/chat/completions", body)

    def refused():
        status, headers, answer = ask()
        return status == 429 and (headers, answer)

    headers, answer = eventually(refused, 20, "a request is sent away")
    assert {name.lower(): value for name, value in headers.items()}["retry-after"] == "2"
    error = json.loads(answer)["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "over_power_budget")
    assert "the power budget leaves 210 W per GPU" in error["message"]
    eventually(
        lambda: service.counted("jouleserve_requests_total", outcome="refused") >= 1, 10, "counted"
    )
    service.put(service.edited(user_config={"slo": {"ttft_ms": 1}}))
    eventually(lambda: ask()[0] == 200, 20, "without the budget it is served, late as it is")
    in_use = [gpus.uuids.index(row["id"]) for row in gpu_rows(service).values()]
    eventually(
        lambda: ask() and max(gpus.limits()[i] for i in in_use) > 210.0, 20, "limits rise again"
    )
    service.put(service.config)


@dataclass
class Story:
    """What happened to the GPUs in a run, and what the ledger said of each."""

    killed: str
    lost: str
    lost_uuid: str
    load: Load
    killed_s: float = 0.0
    lost_s: float = 0.0
    replacement: str = ""
    used: dict[str, float] = field(default_factory=dict)  # by replica, by the fake's account
    told: dict[str, float] = field(default_factory=dict)  # by replica, by the ledger


def kill(service, gpus, play, story, index):
    """SIGKILL one replica in the middle of the load. Its GPU goes dark just before: what a replica
    uses between its last report and its death nobody can tell. Returns its engine's processes."""
    pid = replica_pids(service)[story.killed]
    engine = psutil.Process(pid).children(recursive=True)
    play.end(index)
    time.sleep(TICKS_S)
    story.used[story.killed] = gpus.joules(index)
    story.told[story.killed] = gpu_rows(service)[story.killed]["joules"]
    story.killed_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return engine


def lose(play, story, index):
    """Take the GPU of the replica that is left off the bus, under load."""
    play.hold(index, HELD_WATTS)
    time.sleep(TICKS_S)
    story.used[story.lost] = play.lose(index)
    story.lost_s = time.monotonic()


def await_replacement(service, gpus, play, story):
    """Until a new replica reports; its GPU works from then on. Returns the GPU's index."""

    def reported():
        return gpu_rows(service).keys() - {story.killed, story.lost}

    (story.replacement,) = eventually(reported, 240, "a replacement reports", every_s=0.5)
    index = metered_indices(service, gpus)[story.replacement]
    pid = eventually(  # it reports a moment before Serve counts it in
        lambda: replica_pids(service).get(story.replacement), 30, "Serve knows it", every_s=0.5
    )
    assert index == int(visible_to(pid))
    assert gpus.uuids[index] != story.lost_uuid
    play.begin(index)
    return index


def run(service, gpus, play):
    """The whole story; ends with dark GPUs and everything told."""
    (killed, first), (lost, second) = metered_indices(service, gpus).items()
    load = Load(
        BenchOptions(
            url=service.url,
            rate_per_s=1.0,
            duration_s=LOAD_S,
            prompt_tokens="24:64",
            output_tokens="12:24",
            timeout_s=120.0,
        )
    )
    story = Story(killed=killed, lost=lost, lost_uuid=gpus.uuids[second], load=load)
    for index in (first, second):
        play.begin(index)
    load.start()
    load.wait_until_sending()
    began_s = time.monotonic()
    time.sleep(0.15 * LOAD_S)
    orphans = kill(service, gpus, play, story, first)
    time.sleep(max(0.0, began_s + 0.5 * LOAD_S - time.monotonic()))
    lose(play, story, second)
    third = await_replacement(service, gpus, play, story)
    time.sleep(max(12.0, began_s + LOAD_S - time.monotonic()))
    load.finish()
    assert not [process for process in orphans if alive(process)]
    play.stop()
    time.sleep(TICKS_S)
    rows = gpu_rows(service)
    for replica in (story.lost, story.replacement):
        story.told[replica] = rows[replica]["joules"]
    story.used[story.replacement] = gpus.joules(third) - (
        story.used[killed] if third == first else 0.0
    )
    return story


def test_fleet_joules_are_the_gpus_own_over_a_kill_and_a_loss(fleet):
    service, gpus = fleet
    play, watch = PowerPlay(gpus), Watch(service, gpus)
    play.start()
    watch.start()
    try:
        story = run(service, gpus, play)
    finally:
        play.stop()
        watch.stop()
    told, used = gpu_joules(service), sum(story.used.values())
    print(
        json.dumps({"told": told, "used": used, "ratio": told / used, **vars(story)}, default=str)
    )
    assert told == pytest.approx(used, rel=0.005)
    assert told == pytest.approx(sum(story.told.values()), abs=1e-6)
    for replica in (story.killed, story.replacement):  # the counter shows whole millijoules
        assert story.told[replica] == pytest.approx(story.used[replica], abs=0.002)
    missing = story.used[story.lost] - story.told[story.lost]
    assert 0.0 <= missing <= HELD_WATTS * TICKS_S  # drawn after its last reading
    check_growth(watch.samples, missing)
    check_answers(story)
    check_exposition(service, story, told)
    check_books(service.energy())


def check_growth(samples, missing):
    """Never a joule twice, never one back, no spike, and none late."""
    assert len(samples) > 0.5 * LOAD_S
    for earlier, later in itertools.pairwise(samples):
        assert later.told >= earlier.told
    for sample in samples:
        assert sample.told <= sample.used + 0.002
        known = [old.used for old in samples if old.end_s <= sample.begin_s - 5.0]
        if known:
            assert sample.told >= known[-1] - missing - 0.002


def check_answers(story):
    """All answered but what the killed replica had; the other one goes on and says what it lacks."""
    start_s = story.load.start_s
    lost = []
    for record in story.load.finish():
        sent_s = start_s + record.sent_s
        if not record.completed:
            assert sent_s <= story.killed_s + FAILOVER_S, record
            assert sent_s + record.e2e_s >= story.killed_s, record
            continue
        assert record.energy.joules > 0
        if sent_s < story.lost_s:
            continue
        if record.energy.reason is None:
            assert record.energy.source == "counter+estimated"
            assert record.energy.devices["gpu"] > 0
        else:
            assert f"{story.lost_uuid}: " in record.energy.reason
            assert "lost" in record.energy.reason
            assert record.energy.source == "estimated"
            assert set(record.energy.devices) == {"cpu"}
            lost.append(record)
    assert len(lost) > 0.1 * LOAD_S


def check_exposition(service, story, told):
    """The metrics tell the same, and that the lost GPU is not metered any more."""
    assert service.counted("jouleserve_energy_joules_total", device="gpu") == pytest.approx(told)
    families = {f.name: f for f in text_string_to_metric_families(service.metrics())}
    available = {
        sample.labels["replica"]: sample.value
        for sample in families["jouleserve_meter_available"].samples
        if sample.labels["meter"] == "gpu"
    }
    assert available == {story.lost: 0.0, story.replacement: 1.0}
    drawing = {
        sample.labels["replica"]
        for sample in families["jouleserve_power_watts"].samples
        if sample.labels["device"] == "gpu"
    }
    assert drawing == {story.replacement}
    limit = limits_told(service)[story.lost]
    assert (limit["available"], limit["actuator"]) == (False, "agent")
    assert "fallen off the bus" in limit["reason"]
    row = gpu_rows(service)[story.lost]
    assert (row["id"], row["source"]) == (story.lost_uuid, "unavailable")
    assert "lost" in row["reason"]
    assert "Paris" in service.chat(PARIS[0]["content"])["choices"][0]["message"]["content"]
