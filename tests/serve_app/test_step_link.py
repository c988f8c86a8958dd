"""The wire from the scheduler to the replica: order, handles, drops, a reader that is gone."""

import os

import pytest

from serve_app.engine.step_link import SOCKET_ENV, StepMessage, StepReceiver, StepSender


@pytest.fixture
def link():
    events = []
    receiver = StepReceiver(events.append)
    sender = StepSender(receiver.path)
    yield receiver, sender, events
    receiver.close()


def test_events_arrive_in_order_with_request_ids(link):
    receiver, sender, events = link
    sender.send(StepMessage(kind="a", time_s=1.0, names=[(0, "r-0")], shares=[0, 12, 0, 0]))
    sender.send(
        StepMessage(kind="b", time_s=2.0, names=[(1, "r-1")], shares=[0, 12, 0, 12, 1, 0, 1, 5])
    )
    sender.send(StepMessage(kind="e", time_s=3.0, finished=[0]))
    receiver.drain()
    assert [event.kind for event in events] == ["a", "b", "e"]
    first, second = events[1].shares
    assert (first.request_id, first.prefill_tokens, first.context_tokens) == ("r-0", 12, 12)
    assert (second.request_id, second.decode_tokens, second.context_tokens) == ("r-1", 1, 5)
    assert events[2].finished == ("r-0",)


def test_drain_returns_at_once_when_nothing_came():
    receiver = StepReceiver(lambda _: None)
    receiver.drain()
    assert not receiver.connected
    receiver.close()


def test_a_slow_reader_costs_messages_not_steps_and_is_told(link):
    receiver, sender, events = link
    receiver.drain()
    big = StepMessage(kind="b", time_s=0.0, shares=[7, 1, 1, 1] * 5000)
    for _ in range(200):
        sender.send(big)
    for _ in range(200):
        receiver.drain()
        sender.send(StepMessage(kind="e", time_s=1.0))
    receiver.drain()
    assert receiver.dropped_gaps >= 1
    assert sum(event.kind == "b" for event in events) < 200
    assert events[-1].kind == "e"
    assert events[0].shares[0].request_id == ""  # its introduction was never sent


def test_a_reader_that_is_gone_does_not_hurt_the_engine(link):
    receiver, sender, _ = link
    receiver.drain()
    receiver.close()
    for _ in range(3):
        sender.send(StepMessage(kind="e", time_s=1.0))


def test_an_engine_that_is_gone_disconnects_and_keeps_what_it_sent(link):
    receiver, sender, events = link
    sender.send(StepMessage(kind="e", time_s=1.0))
    receiver.drain()
    sender._socket.close()
    receiver.drain()
    assert not receiver.connected
    assert len(events) == 1


def test_no_listener_means_no_sender(monkeypatch, tmp_path):
    monkeypatch.delenv(SOCKET_ENV, raising=False)
    assert StepSender.from_environment() is None
    monkeypatch.setenv(SOCKET_ENV, str(tmp_path / "absent.sock"))
    assert StepSender.from_environment() is None


def test_close_leaves_no_file():
    receiver = StepReceiver(lambda _: None)
    receiver.close()
    assert not os.path.exists(os.path.dirname(receiver.path))
