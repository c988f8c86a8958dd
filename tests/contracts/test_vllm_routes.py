"""Which key every call of vLLM's own application needs, under direct streaming (vllm 0.29). A route
that an upgrade brings is decided on here before it is served."""

from __future__ import annotations

import pytest

from serve_app.security.scopes import scope_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

DECIDED = {
    None: {"/health", "/ping"},
    "energy": {"/metrics", "/load"},
    "inference": {
        "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/version", "/tokenize",
        "/detokenize", "/v1/models", "/invocations", "/v1/chat/completions",
        "/v1/chat/completions/batch", "/v1/responses", "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel", "/v1/completions", "/v1/messages",
        "/v1/messages/count_tokens", "/generative_scoring", "/v1/chat/completions/render",
        "/v1/messages/render", "/v1/completions/render", "/v1/chat/completions/derender",
        "/v1/completions/derender", "/inference/v1/generate", "/v1/realtime",
        "/v1/audio/transcriptions", "/v1/audio/translations",
    },
    "admin": {
        "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/pause", "/resume",
        "/abort_requests", "/is_paused", "/init_weight_transfer_engine", "/start_weight_update",
        "/start_draft_weight_update", "/update_weights", "/finish_weight_update",
        "/update_weight_version", "/weight_info", "/get_world_size", "/collective_rpc",
        "/server_info", "/sleep", "/wake_up", "/is_sleeping", "/scale_elastic_ep",
        "/is_scaling_elastic_ep", "/adapters", "/adapters/{adapter_name}", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def paths():
    """Of the application with all that switches on routes which we know of."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.api_server import build_app
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        app = build_app(arguments, ("generate", "transcription", "realtime"))
    return {route.path for route in app.routes}


def test_every_route_has_been_decided_on(paths):
    assert paths == set().union(*DECIDED.values())


def test_every_route_needs_what_was_decided():
    for scope, decided in DECIDED.items():
        assert {path: scope_of(path) for path in decided} == dict.fromkeys(decided, scope)
