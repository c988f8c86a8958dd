"""Which scope a path needs, and that no spelling of it needs less."""

import pytest
from asgi_play import http_scope
from hypothesis import given
from hypothesis import strategies as st

from serve_app.security.scopes import PUBLIC, SCOPES, Scope, routed_path, scope_of


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/chat/completions", Scope.INFERENCE),
        ("/v1/models", Scope.INFERENCE),
        ("/v1/models/org/name", Scope.INFERENCE),
        ("/v1/load_lora_adapter", Scope.ADMIN),
        ("/v1/load_lora_adapter/", Scope.ADMIN),
        ("/v1/load_lora_adapters", Scope.INFERENCE),  # no such route: a 404 for who may ask
        ("/tokenize", Scope.INFERENCE),
        ("/metrics", Scope.ENERGY),
        ("/metrics/", Scope.ENERGY),
        ("/metricsx", Scope.ADMIN),  # vLLM mounts its metrics at whatever begins like that
        ("/jouleserve/energy", Scope.ENERGY),
        ("/jouleserve/approve", Scope.ADMIN),
        ("/jouleserve/decisions", Scope.ENERGY),
        ("/energy", None),  # the page asks for the key itself
        ("/energy/assets/page.js", None),
        ("/energy/assets/another", Scope.ENERGY),
        ("/energy/data", Scope.ENERGY),
        ("/energy/decisions", Scope.ENERGY),
        ("/energy/", Scope.ENERGY),
        ("/collective_rpc", Scope.ADMIN),
        ("/sleep", Scope.ADMIN),
        ("/", Scope.ADMIN),
        ("", Scope.ADMIN),
        ("v1/models", Scope.ADMIN),
        ("//v1/models", Scope.ADMIN),
        ("/V1/models", Scope.ADMIN),
        ("/v1%2fmodels", Scope.ADMIN),
        ("/../v1/models", Scope.ADMIN),
        ("/health", None),
        ("/health/", Scope.ADMIN),
        ("/healthz", Scope.ADMIN),
        ("/ping", None),
    ],
)
def test_the_scope_of_a_path(path, scope):
    assert scope_of(path) == scope


@given(st.text(alphabet="/.%vV1metricshealtponjuv_", max_size=40))
def test_a_path_that_does_not_begin_with_an_entry_needs_admin(path):
    entries = [entry for entry in SCOPES if path == entry or path.startswith(entry + "/")]
    if path in PUBLIC:
        assert scope_of(path) is None
    elif not entries:
        assert scope_of(path) is Scope.ADMIN
    else:
        assert scope_of(path) is SCOPES[max(entries, key=len)]


def test_a_long_path_costs_what_a_short_one_costs():
    assert scope_of("/a" * 30_000) is Scope.ADMIN
    assert scope_of("/v1" + "/" * 60_000) is Scope.INFERENCE


@pytest.mark.parametrize(
    ("path", "root", "routed"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/llm/v1/models", "/llm", "/v1/models"),
        ("/llm", "/llm", "/"),
        ("/llmv1/models", "/llm", "/llmv1/models"),  # the router does not cut it either
        ("/v1/models", "/llm", "/v1/models"),
    ],
)
def test_the_path_is_the_one_that_the_router_sees(path, root, routed):
    assert routed_path(http_scope(path, root_path=root)) == routed
