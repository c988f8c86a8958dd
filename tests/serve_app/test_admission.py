"""Who is sent away under a power budget, and when nobody is."""

import time
from dataclasses import replace

import pytest

from policies.core.window import Window
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.base import LimitState
from serve_app.actuators.batch_cap import BatchCap
from serve_app.admission import error_of, refusal
from serve_app.control_loop import Replica
from serve_app.deciders import Serving, load_profile, policy_for
from serve_app.engine.access import CapState
from serve_app.engine.tap import EngineState
from serve_app.live_model import LiveModel
from serve_app.meters import EnergyMeter
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder
from serve_app.settings import LiveSettings, parse_energy, parse_live

MODEL = load_profile("llama-3.1-8b-instruct@h100")
LABELS = {"application": "llm", "deployment": "d", "replica": "r", "model": "m"}
AT_250 = LimitState(
    held=True, enforced_watts=250.0, limit_watts=250.0, max_watts=700.0,
    default_watts=700.0,
)  # fmt: skip


@pytest.fixture
def replica():
    accountant = EnergyAccountant(EnergyMeter(["estimated"]))
    base = parse_energy({"power": {"actuator": "agent", "over_budget": "refuse"}}, "f")
    made = Replica(
        name="r",
        accountant=accountant,
        engine=EngineState(),
        cap=BatchCap(None),
        recorder=Recorder(MetricSet(LABELS)),
        policy=policy_for(base, MODEL),
        base=base,
        live=LiveSettings(),
        output_tokens=Window(30.0),
        live_model=LiveModel(MODEL, base.model_correction),
        serving=Serving(max_num_batched_tokens=8192),
    )
    made.cap.in_force = CapState(max_num_active_seqs=64, num_running=0, max_num_seqs=256)
    made.limit.state, made.budget_watts = AT_250, 250.0
    made.output_tokens.add(time.monotonic(), 200.0)
    accountant.demand.arrive("first", time.monotonic(), 1000)
    yield made
    accountant.close()


def press(replica, prompts=60):
    for number in range(prompts):
        replica.accountant.demand.arrive(f"p{number}", time.monotonic(), 1000)


def test_a_request_that_would_be_late_is_told_so_and_one_that_would_not_is_taken(replica):
    assert refusal(replica) is None
    press(replica)
    message = refusal(replica)
    assert message.startswith("the power budget leaves 250 W per GPU")
    assert message.endswith("where 1 s are promised")
    error = error_of(message).error
    assert (error.code, error.type, error.message) == (429, "over_power_budget", message)


def test_a_full_batch_counts_as_waiting_prompts_do(replica):
    replica.engine.num_running, replica.engine.num_waiting = 64, 40
    assert refusal(replica) is not None
    replica.engine.num_running = 10
    replica.engine.num_waiting = 0
    assert refusal(replica) is None


def not_asked_for(replica):
    replica.base = parse_energy({"power": {"actuator": "agent"}}, "f")


def changed_live(replica):
    replica.live = parse_live({"over_budget": "queue"}, "f", replica.base)


def advisory(replica):
    replica.live = parse_live({"mode": "advisory"}, "f", replica.base)


def no_budget(replica):
    replica.budget_watts = None


def more_is_left(replica):
    replica.budget_watts = 300.0  # the policy raises the limit first


def at_the_default(replica):
    replica.limit.state = replace(AT_250, held=False, enforced_watts=700.0)


def no_model(replica):
    replica.live_model = None


def no_lengths(replica):
    replica.output_tokens = Window(30.0)


def no_cap(replica):
    replica.cap.in_force = None


def below_what_the_profile_knows(replica):
    replica.limit.state = replace(AT_250, enforced_watts=1.0)
    replica.budget_watts = 1.0


@pytest.mark.parametrize(
    "change",
    [not_asked_for, changed_live, advisory, no_budget, more_is_left, at_the_default, no_model,
     no_lengths, no_cap, below_what_the_profile_knows],
)  # fmt: skip
def test_in_doubt_everybody_is_taken(replica, change):
    press(replica)
    assert refusal(replica) is not None
    change(replica)
    assert refusal(replica) is None
