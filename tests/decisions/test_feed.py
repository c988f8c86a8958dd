"""Which decisions are recorded, and how they leave Ray's controller."""

import threading
from dataclasses import replace

from recorded import CORRECTION, FLEET, MODEL, SERVING, SETTINGS, records, seen

from policies.core.types import ControlState, Decision, Mode, OperatingPoint, Reason
from policies.model.online import fingerprint
from serve_app.decisions.feed import (
    AGAIN_S,
    Asked,
    Changes,
    FleetFeed,
    FleetNews,
    FleetRow,
    feed_of,
    record_of,
)
from serve_app.decisions.record import read_record
from serve_app.settings import EnergySettings

POINT = OperatingPoint(num_replicas=1, max_num_active_seqs=8)
ROW = FleetRow(
    application="llm", deployment="d", replicas=1, requested_replicas=1, min_replicas=1,
    max_replicas=4,
)  # fmt: skip


def decided(time_s, point=POINT, reason=Reason.NO_BETTER_POINT, notes=()):
    return Decision(
        time_s=time_s, policy="p", reason=reason, present=point, proposed=point, chosen=point,
        notes=notes,
    )  # fmt: skip


def test_what_is_the_same_as_the_last_is_recorded_once_a_minute():
    changes = Changes()
    assert changes.is_new(decided(0.0))
    assert not changes.is_new(decided(1.0))
    assert changes.is_new(decided(2.0, reason=Reason.DWELL))
    assert changes.is_new(decided(3.0, replace(POINT, power_limit_watts=300.0)))
    assert changes.is_new(decided(4.0, replace(POINT, power_limit_watts=300.0), notes=("a 1",)))
    again = decided(5.0, replace(POINT, power_limit_watts=300.0), notes=("a 2",))
    assert not changes.is_new(again)
    assert changes.is_new(replace(again, time_s=4.0 + AGAIN_S))
    assert changes.is_new(replace(again, time_s=1.0))  # another clock
    # What the router is told follows every lesson: once a minute is enough.
    told = replace(POINT, power_limit_watts=300.0, pack_seqs=9, pack_tokens=900)
    assert not changes.is_new(replace(again, time_s=2.0, chosen=told, proposed=told))
    assert changes.is_new(replace(again, time_s=2.0), Mode.APPROVE)


def test_a_record_made_in_haste_is_one_that_can_be_read():
    (one,) = records([seen(1.0, 10.0)], FLEET)
    asked = Asked(
        observation=one.observation, state=ControlState(), settings=SETTINGS,
        free=frozenset(FLEET), correction=CORRECTION, serving=SERVING,
    )  # fmt: skip
    made = record_of(decided(1.0), asked, EnergySettings(), MODEL, ("d", None))
    read = read_record(made.model_dump_json())
    assert read == made
    assert read.id.startswith("fleet-")
    other = record_of(decided(1.0), asked, EnergySettings(), MODEL, ("e", None))
    assert other.id != made.id  # approved by id: two fleets in one millisecond are two
    assert read.profile == fingerprint(MODEL)


def test_the_feed_sends_the_last_row_of_each_deployment_and_all_records():
    sent, go, came = [], threading.Event(), threading.Event()

    def send(*told):
        go.wait(5.0)
        sent.append(told)
        came.set()

    feed = FleetFeed(send)
    feed.put(FleetNews(row=ROW))
    (record,) = records([seen(1.0, 10.0)], FLEET)
    for number in range(5):
        feed.put(FleetNews(row=replace(ROW, replicas=number), record=record, model=MODEL))
    go.set()
    for _ in range(100):
        if sum(len(lines) for _, lines, *_ in sent) == 5:
            break
        came.wait(0.1)
        came.clear()
    assert len(sent) <= 3
    row, lines, profiles, _ = sent[-1]
    assert row.replicas == 4
    assert [read_record(line).id for line in lines][-1] == "d0"
    assert list(profiles) == [fingerprint(MODEL)]


def test_a_ledger_that_fails_costs_its_news_and_no_more(caplog):
    tried, again = [], threading.Event()

    def send(row, *_):
        tried.append(row.replicas)
        if row.replicas == 1:
            raise OSError("no ledger")
        again.set()

    feed = FleetFeed(send)
    feed.put(FleetNews(row=ROW))
    for _ in range(100):
        if tried:
            break
        threading.Event().wait(0.05)
    feed.put(FleetNews(row=replace(ROW, replicas=2)))
    assert again.wait(5.0)
    assert tried == [1, 2]
    assert "the ledger does not hear of decisions" in caplog.text


def test_without_ray_there_is_no_feed():
    assert feed_of("llm") is None
