"""What a client hears when a replica is lost under its request."""

import json

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from ray.serve.llm.ingress import OpenAiIngress

from serve_app.api_errors import RetryLater
from serve_app.ingress import EnergyIngress


class Replicas:
    """What Ray's ingress would get, call by call: items, and an exception at the end of a call."""

    def __init__(self, *calls):
        self.calls = list(calls)
        self.asked = 0

    async def _get_response(self, **_):
        self.asked += 1
        for item in self.calls.pop(0):
            if isinstance(item, Exception):
                raise item
            yield item


@pytest.fixture
def ingress(monkeypatch):
    def of(*calls):
        replicas = Replicas(*calls)
        monkeypatch.setattr(
            OpenAiIngress, "_get_response", lambda self, **given: replicas._get_response(**given)
        )
        return object.__new__(EnergyIngress), replicas

    return of


async def heard(made):
    return [item async for item in made._get_response(body=None)]


async def test_another_replica_is_asked_where_nothing_had_been_said(ingress):
    made, replicas = ingress([ActorDiedError()], ["answer"])
    assert await heard(made) == ["answer"]
    assert replicas.asked == 2


async def test_where_all_are_lost_the_client_is_told_to_come_back(ingress):
    made, replicas = ingress(*([ActorDiedError()] for _ in range(5)))
    with pytest.raises(RetryLater) as caught:
        await heard(made)
    assert caught.value.status_code == 503
    assert replicas.asked == 2  # a request may be what kills them


@pytest.mark.parametrize("said", [["data: a"], "an answer"])
async def test_what_had_begun_is_not_asked_for_again(ingress, said):
    made, replicas = ingress([said, ActorDiedError()], ["never"])
    first, last = await heard(made)
    assert first == said
    assert json.loads(last[0].partition("data: ")[2].partition("\n")[0])["error"]["code"] == 500
    assert replicas.asked == 1


async def test_overload_is_not_a_loss(ingress):
    full = BackPressureError(
        num_queued_requests=4, max_queued_requests=4, status_code=503, retry_after_s=2
    )
    made, replicas = ingress([full], ["never"])
    with pytest.raises(RetryLater, match="overloaded"):
        await heard(made)
    assert replicas.asked == 1
    made, replicas = ingress([ValueError("ours")], ["never"])
    with pytest.raises(ValueError, match="ours"):
        await heard(made)
    assert replicas.asked == 1
