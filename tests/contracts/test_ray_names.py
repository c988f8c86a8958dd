"""Ray's private names that serve_app/engine/ray_server.py and access.py rest on (ray 2.60).

A failure here after an upgrade of Ray names what has to be adapted, before anything is deployed.
"""

from __future__ import annotations

import asyncio
import inspect

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]  # ray.serve.llm imports vLLM


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.fixture(scope="module")
def llm_config(tiny_model):
    from ray.serve.llm import LLMConfig

    return LLMConfig(
        model_loading_config={"model_id": "tiny", "model_source": str(tiny_model)},
        accelerator_config={"kind": "cpu"},
    )


def test_versions_are_the_ones_that_the_names_were_checked_on():
    from importlib.metadata import version

    assert version("ray").startswith("2.60.")


def test_the_ingress_endpoints_are_methods_of_the_public_ingress():
    from ray.serve.llm.ingress import OpenAiIngress

    from serve_app.engine.ray_server import DEFAULT_ENDPOINTS
    from serve_app.ingress import ENDPOINTS, EnergyIngress

    assert {"chat", "completions", "models"} <= DEFAULT_ENDPOINTS.keys()
    assert all(callable(getattr(OpenAiIngress, name)) for name in DEFAULT_ENDPOINTS)
    assert all(callable(getattr(EnergyIngress, name)) for name in ENDPOINTS)
    assert DEFAULT_ENDPOINTS.keys() < ENDPOINTS.keys()


def test_make_fastapi_ingress_puts_our_routes_beside_rays():
    from serve_app.api_errors import use_openai_errors
    from serve_app.engine.ray_server import make_fastapi_ingress, new_ingress_app
    from serve_app.ingress import ENDPOINTS, EnergyIngress

    assert parameters(make_fastapi_ingress) == ["cls", "endpoint_map", "app"]
    app = use_openai_errors(new_ingress_app())
    ingress = make_fastapi_ingress(EnergyIngress, endpoint_map=ENDPOINTS, app=app)
    assert issubclass(ingress, EnergyIngress)
    paths = {route.path for route in app.routes}
    assert {"/v1/chat/completions", "/v1/models", "/metrics", "/jouleserve/energy"} <= paths


def test_the_stream_hook_of_the_ingress():
    from ray.serve.llm.ingress import OpenAiIngress

    hook = OpenAiIngress._get_response
    assert inspect.isasyncgenfunction(hook)
    given = inspect.signature(hook).parameters
    assert list(given) == ["self", "body", "call_method", "raw_request"]
    # Ray calls it with names only, so that our override may take **kwargs.
    assert all(p.kind is p.KEYWORD_ONLY for name, p in given.items() if name != "self")


def test_the_server_methods_that_we_extend():
    from ray.serve.llm.deployment import LLMServer

    from serve_app.server import EnergyLLMServer

    for name in ("start", "chat", "completions", "check_health", "__serve_build_asgi_app__"):
        assert inspect.iscoroutinefunction(getattr(LLMServer, name)), name
    for name in ("chat", "completions"):
        assert parameters(getattr(LLMServer, name)) == ["self", "request", "raw_request_info"]
        assert parameters(getattr(EnergyLLMServer, name)) == ["self", "request", "raw_request_info"]
    # Ours are new names, not overrides that would lose something of Ray's.
    assert not hasattr(LLMServer, "reconfigure")
    assert not hasattr(LLMServer, "record_autoscaling_stats")


def test_the_engine_client_is_where_access_looks(llm_config):
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    from policies.core.errors import EngineDead
    from serve_app.engine.access import engine_client

    engine = VLLMEngine(llm_config)
    assert vars(engine)["_engine_client"] is None  # set by start()
    with pytest.raises(EngineDead):
        engine_client(engine)
    assert "self._engine_client = self._start_async_llm_engine(" in inspect.getsource(VLLMEngine)


def test_the_callback_that_skips_the_download(llm_config):
    from serve_app.engine.ray_server import NO_CALLBACK, SkipDownload

    assert llm_config.callback_config.callback_class is NO_CALLBACK
    callback = SkipDownload(llm_config)
    assert callback.ctx.run_init_node is True
    asyncio.run(callback.run_callback("on_before_node_init"))
    assert callback.ctx.run_init_node is False


def test_ray_asks_the_callback_before_it_downloads():
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    source = inspect.getsource(VLLMEngine)
    asked = source.index('run_callback("on_before_node_init")')
    assert asked < source.index("if callback.ctx.run_init_node:")


def test_model_cards(llm_config):
    from serve_app.engine.ray_server import model_cards

    card = model_cards([llm_config])["tiny"]
    assert (card.id, card.object) == ("tiny", "model")


def test_ingress_options_lay_the_users_over_rays(llm_config):
    from serve_app.engine.ray_server import ingress_options
    from serve_app.ingress import EnergyIngress

    plain = ingress_options(EnergyIngress, [llm_config], {})
    assert plain["max_ongoing_requests"] > 0
    given = {"num_replicas": 1, "autoscaling_config": None, "ray_actor_options": {"num_cpus": 0.1}}
    mine = ingress_options(EnergyIngress, [llm_config], given)
    assert mine["num_replicas"] == 1
    assert not mine.get("autoscaling_config")
    assert mine["max_ongoing_requests"] == plain["max_ongoing_requests"]


def test_a_middleware_can_be_added_to_a_built_app():
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from serve_app.engine.ray_server import add_middleware
    from serve_app.responses import EnergyMiddleware
    from serve_app.web.routes import add_routes

    app = FastAPI()

    @app.post("/v1/completions")
    async def completions():
        return {"id": "cmpl-1", "usage": {"total_tokens": 3}}

    app.middleware_stack = app.build_middleware_stack()  # as vLLM's build_app leaves it
    add_middleware(app, EnergyMiddleware, energy_of=lambda response: {"of": response})

    async def view(what, *_):
        return {"what": what} if what == "energy" else b"jouleserve_x 1.0\n"

    add_routes(app, view)
    client = TestClient(app)
    assert client.post("/v1/completions").json()["energy"] == {"of": "cmpl-1"}
    assert client.get("/jouleserve/energy").json() == {"what": "energy"}
    assert client.get("/jouleserve/metrics").text == "jouleserve_x 1.0\n"


def test_errors_that_become_openai_errors():
    from ray.serve.exceptions import BackPressureError
    from vllm.v1.engine.exceptions import EngineDeadError

    from serve_app.engine.ray_server import FATAL_ENGINE_ERRORS, OpenAIHTTPException

    error = OpenAIHTTPException(status_code=418, message="short and stout")
    assert (error.status_code, error.message) == (418, "short and stout")
    assert EngineDeadError in FATAL_ENGINE_ERRORS
    overloaded = BackPressureError(
        num_queued_requests=4, max_queued_requests=4, status_code=503, retry_after_s=2
    )
    assert (overloaded.status_code, overloaded.retry_after_s) == (503, 2)


def test_direct_streaming_is_rays_own_flag():
    from ray.llm._internal.serve import constants

    from serve_app.engine.ray_server import direct_streaming

    assert direct_streaming() is bool(constants.RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING)


def test_the_policy_context_has_what_the_fleet_tick_reads():
    from ray.serve.config import AutoscalingContext

    read = {
        "raw_metrics", "current_time", "policy_state", "running_replicas", "deployment_name",
        "target_num_replicas", "current_num_replicas", "capacity_adjusted_min_replicas",
        "capacity_adjusted_max_replicas",
    }  # fmt: skip
    names = set(parameters(AutoscalingContext)) | set(dir(AutoscalingContext))
    assert read <= names, read - names
