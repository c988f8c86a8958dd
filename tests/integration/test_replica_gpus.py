"""A replica learns from a real Ray cluster which GPUs are its own, however Ray gave them."""

from __future__ import annotations

import os

import pytest
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serve_app.replica_gpus import AssignedGpus, _Part, assigned_gpus, summed

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this test's own that is told to have four GPUs."""
    ray.init(
        address="local", num_cpus=4, num_gpus=4, include_dashboard=False, configure_logging=False
    )
    yield
    ray.shutdown()


@ray.remote(num_cpus=0.1)
class Server:
    """As Ray's LLM server: in the first bundle of its placement group."""

    async def gpus(self, server_gpus):
        return await assigned_gpus(server_gpus)


@ray.remote(num_cpus=0)
class Worker:
    """As a worker of its engine, in a bundle."""

    def visible(self):
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")


class Replica:
    def __init__(self, *bundles, server_gpus=0.0):
        self.bundles = [{"CPU": 0.1}, *bundles[1:]]
        self.bundles[0] |= bundles[0]
        self.server_gpus = server_gpus
        self.group = placement_group(self.bundles)
        ray.get(self.group.ready(), timeout=30)
        self.server = Server.options(num_gpus=server_gpus, **self.at(0)).remote()

    def at(self, bundle):
        strategy = PlacementGroupSchedulingStrategy(
            self.group,
            placement_group_bundle_index=bundle,
            placement_group_capture_child_tasks=True,
        )
        return {"scheduling_strategy": strategy}

    def assigned(self):
        return ray.get(self.server.gpus.remote(self.server_gpus), timeout=60)

    def seen_by_workers(self):
        """What Ray then shows the engine's workers."""
        workers = [
            Worker.options(num_gpus=bundle["GPU"], **self.at(index)).remote()
            for index, bundle in enumerate(self.bundles)
        ]
        return [one for worker in workers for one in ray.get(worker.visible.remote(), timeout=60)]


def test_each_replica_has_the_gpus_that_its_engine_will_see(cluster):
    two_workers = Replica({"GPU": 1}, {"GPU": 1})
    holds_it_itself = Replica({"GPU": 1}, server_gpus=1)
    halves = [Replica({"GPU": 0.5}), Replica({"GPU": 0.5})]
    without = Replica({})

    whole = two_workers.assigned()
    own = holds_it_itself.assigned()
    shared = [half.assigned() for half in halves]
    assert without.assigned() == AssignedGpus(visible="")
    assert whole.visible.split(",") == two_workers.seen_by_workers()
    assert [gpus.visible.split(",") for gpus in shared] == [h.seen_by_workers() for h in halves]
    assert (whole.allotted_ratio, own.allotted_ratio) == (1.0, 1.0)
    assert [gpus.allotted_ratio for gpus in shared] == [0.5, 0.5]
    assert shared[0].visible == shared[1].visible
    every = f"{whole.visible},{own.visible},{shared[0].visible}"
    assert sorted(every.split(",")) == ["0", "1", "2", "3"]
    assert {gpus.missing for gpus in (whole, own, *shared)} == {None}


def test_gpus_on_another_node_are_told_as_missing():
    parts = [
        _Part(node="here", ids=(), amount=0.0),
        _Part(node="here", ids=("3",), amount=1.0),
        _Part(node="there", ids=("0", "1"), amount=2.0),
    ]
    found = summed(parts, "here")
    assert (found.visible, found.allotted_ratio) == ("3", 1.0)
    assert found.missing == "2 of this replica's GPUs on other nodes are not metered"
