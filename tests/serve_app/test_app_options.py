"""What the builder puts under a deployment's options, and what it leaves to the user. No engine."""

from serve_app.app import ROUTER, _let_policy_scale, _let_router_pack


def test_our_router_is_the_default():
    deployment = {}
    assert _let_router_pack(deployment)
    assert deployment == {"request_router_config": ROUTER}


def test_a_router_of_the_users_own_stays():
    from ray.serve.config import RequestRouterConfig

    prefix = {"request_router_class": "ray.serve.llm.request_router.PrefixCacheAffinityRouter"}
    for given in (prefix, RequestRouterConfig(**prefix)):
        deployment = {"request_router_config": given}
        assert not _let_router_pack(deployment)
        assert deployment["request_router_config"] is given


def test_other_options_of_the_router_go_over_ours():
    own = {"request_routing_stats_period_s": 3.0, "max_backoff_s": 1.0}
    deployment = {"request_router_config": own}
    assert _let_router_pack(deployment)
    assert deployment["request_router_config"] == {**ROUTER, **own}


def test_a_fixed_number_of_replicas_stays_fixed():
    fixed = {"num_replicas": 2}
    _let_policy_scale(fixed, {"settings": {}})
    assert fixed == {"num_replicas": 2}
