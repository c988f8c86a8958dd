"""Ray's private names for building the application: its ingress pieces and its ASGI helpers.

Touched (tests/contracts): `DEFAULT_ENDPOINTS`, `make_fastapi_ingress`, `init`,
`to_model_metadata`, `OpenAIHTTPException`, `_add_middleware_to_built_app`, `CallbackBase`, and
the direct-streaming flag.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.common.dict_utils import maybe_apply_llm_deployment_config_defaults
from ray.llm._internal.common.errors import VLLM_FATAL_ERRORS
from ray.llm._internal.serve.constants import RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING
from ray.llm._internal.serve.core.configs.openai_api_models import (
    OpenAIHTTPException,
    to_model_metadata,
)
from ray.llm._internal.serve.core.ingress.ingress import DEFAULT_ENDPOINTS, make_fastapi_ingress
from ray.llm._internal.serve.core.ingress.ingress import init as new_ingress_app
from ray.llm._internal.serve.core.server.llm_server import _add_middleware_to_built_app

__all__ = [
    "DEFAULT_ENDPOINTS",
    "FATAL_ENGINE_ERRORS",
    "NO_CALLBACK",
    "OpenAIHTTPException",
    "SkipDownload",
    "add_middleware",
    "direct_streaming",
    "ingress_options",
    "make_fastapi_ingress",
    "model_cards",
    "new_ingress_app",
]

NO_CALLBACK = CallbackBase  # LLMConfig's default: nothing of the user's
FATAL_ENGINE_ERRORS = tuple(VLLM_FATAL_ERRORS)  # the engine is dead; Serve replaces the replica


class SkipDownload(CallbackBase):  # type: ignore[misc]  # Ray ships no types for it
    """The model is a local folder: skip Ray's download task (46 s and an idle worker, measured)."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


def direct_streaming() -> bool:
    """Whether Ray routes requests straight to the replicas' own ASGI apps."""
    return bool(RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING)


def add_middleware(app: Any, middleware: type, **options: Any) -> None:
    """Add a middleware to vLLM's app, whose stack is built already."""
    _add_middleware_to_built_app(app, middleware, **options)


def ingress_options(ingress_cls: Any, llm_configs: list[Any], given: dict[str, Any]) -> Any:
    """Ray's ingress deployment options under the user's."""
    defaults = ingress_cls.get_deployment_options(llm_configs)
    return maybe_apply_llm_deployment_config_defaults(defaults, given)


def model_cards(llm_configs: list[Any]) -> dict[str, Any]:
    """Model id → the card that /v1/models shows."""
    return {c.model_id: to_model_metadata(c.model_id, c) for c in llm_configs}
