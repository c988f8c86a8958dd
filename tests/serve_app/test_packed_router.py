"""The packing router against Ray's own router classes: names it rests on, and what it answers."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter

from serve_app.packed_router import PackedRouter
from serve_app.packing import STATS_KEY, Told

DEPLOYMENT = DeploymentID(name="EnergyLLMServer:m", app_name="llm")


def stats(rank, **more):
    values = {"time_s": 1e12, "num_outstanding": 0.0, "waiting_tokens": 0.0, "rank": rank} | more
    told = Told(**{"pack_seqs": 2, "pack_tokens": 1000} | values)
    return {STATS_KEY: {name: getattr(told, name) for name in Told.__slots__}}


class Replica:
    """What the router sees of `RunningReplica`."""

    multiplexed_model_ids = frozenset()
    node_id = availability_zone = None
    max_ongoing_requests = 100

    def __init__(self, name, routing_stats):
        self.replica_id = ReplicaID(unique_id=name, deployment_id=DEPLOYMENT)
        self.routing_stats = routing_stats

    async def get_queue_len(self, *, deadline_s):
        return 0


async def router(*replicas):
    made = PackedRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    made.initialize_state()
    made.update_replicas(list(replicas))
    await asyncio.sleep(0)
    return made


def request(number, prompt="x", **more):
    metadata = RequestMetadata(request_id=f"r{number}", internal_request_id=f"i{number}", **more)
    return PendingRequest(args=[SimpleNamespace(prompt=prompt)], kwargs={}, metadata=metadata)


async def ranks(made, pending):
    found = await made.choose_replicas(made._replicas_list, pending)
    return [[one.replica_id.unique_id for one in rank] for rank in found]


def test_the_names_of_ray_that_it_rests_on():
    assert issubclass(PackedRouter, RequestRouter)
    for name in ("choose_replicas", "on_request_completed", "initialize_state"):
        ours = inspect.signature(getattr(PackedRouter, name)).parameters
        rays = inspect.signature(getattr(RequestRouter, name)).parameters
        if name != "initialize_state":
            assert list(ours) == list(rays)
    assert "choose_replicas" in RequestRouter.__abstractmethods__
    assert {"args", "metadata", "routing_context"} <= PendingRequest.__dataclass_fields__.keys()


def test_serve_finds_it_by_its_import_path():
    from serve_app.app import ROUTER

    config = RequestRouterConfig(**ROUTER)
    assert config.get_request_router_class() is PackedRouter
    assert config.request_routing_stats_period_s == 1.0


async def test_sequential_requests_go_to_the_first_replica_and_a_third_at_once_to_the_next():
    made = await router(Replica("b", stats(1)), Replica("a", stats(0)), Replica("c", None))
    for number in range(5):
        assert (await ranks(made, request(number)))[0] == ["a"]
        made.on_request_completed(ReplicaID("a", DEPLOYMENT), f"i{number}")
    first = [(await ranks(made, request(number)))[0] for number in range(10, 15)]
    assert first == [["a"], ["a"], ["b"], ["b"], ["c"]]


async def test_every_replica_is_there_in_case_the_first_refuses():
    made = await router(Replica("b", stats(1)), Replica("a", stats(0)))
    assert await ranks(made, request(1)) == [["a"], ["b"]]


async def test_a_retry_of_a_request_is_not_a_second_one():
    made = await router(Replica("b", stats(1)), Replica("a", stats(0)))
    pending = request(1)
    for _ in range(5):
        assert (await ranks(made, pending))[0] == ["a"]
    assert pending.routing_context.should_backoff


async def test_long_prompts_close_the_gate_before_the_number_does():
    wide = {"pack_seqs": 64, "prompt_tokens": 400.0}
    made = await router(Replica("b", stats(1, **wide)), Replica("a", stats(0, **wide)))
    first = [(await ranks(made, request(n, "x" * 2000)))[0] for n in range(4)]
    assert first == [["a"], ["a"], ["a"], ["b"]]  # 400 tokens each, up to 1000


async def test_without_hints_it_is_the_power_of_two_choices():
    made = await router(Replica("b", stats(1, pack_seqs=None)), Replica("a", None))
    seen = {frozenset((await ranks(made, request(n)))[0]) for n in range(20)}
    assert seen == {frozenset({"a", "b"})}  # two choices in one rank, the shorter queue wins
    assert len(await ranks(made, request(99))) == 1


async def test_a_fault_in_packing_costs_packing_only():
    made = await router(Replica("b", stats(1)), Replica("a", stats(0)))
    made._loads = None
    for number in range(3):
        assert len(await ranks(made, request(number))) == 1


async def test_multiplexed_models_are_rays_business():
    made = await router(Replica("b", stats(1)), Replica("a", stats(0)))
    found = await ranks(made, request(1, multiplexed_model_id="lora"))
    assert len(found) <= 1


@pytest.mark.parametrize("cached", [True, False])
async def test_serve_routes_through_it(cached):
    """Ray's own loop from pending request to replica."""
    made = await router(Replica("b", stats(1)), Replica("a", stats(0)))
    made._use_replica_queue_len_cache = cached
    went = [await made._choose_replica_for_request(request(number)) for number in range(4)]
    assert [one.replica_id.unique_id for one in went] == ["a", "a", "b", "b"]
