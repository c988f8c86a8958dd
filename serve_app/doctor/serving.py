"""The section "serving": the Serve file, its models, its port, and how Ray authenticates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError
from serve_app.doctor.findings import Finding, Level, Section
from serve_app.doctor.scope import Scope, mapping, mappings
from serve_app.launch import Deployment, read_deployment, require_free_port
from serve_app.models.catalog import KNOWN_MODELS
from serve_app.models.resolve import check_foreign, resolve_model

_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_MODES = ("disabled", "token")


def serving_section(scope: Scope) -> Section:
    """Return the whole section."""
    findings = [*_file(scope), *_shared_gpus(scope), _auth(scope), *_address(scope.environ)]
    return Section(name="serving", findings=tuple(findings))


def _file(scope: Scope) -> list[Finding]:
    if scope.file is None:
        text = "none here: `jouleserve doctor FILE` checks a Serve config file as well"
        default = [_model(name) for name in KNOWN_MODELS]
        return [Finding(level=Level.NOTE, subject="config", text=text), *default]
    try:
        deployment = read_deployment(scope.file)
    except ConfigError as error:
        return [Finding(level=Level.PROBLEM, subject="config", text=str(error))]
    except (AttributeError, TypeError, ValueError) as error:  # a scalar where a mapping belongs
        text = f"{scope.file}: not a Serve config file: {error}"
        return [Finding(level=Level.PROBLEM, subject="config", text=text)]
    metering = "metering only" if scope.energy is None else f"policy {scope.energy.policy.name}"
    text = f"{scope.file}: {', '.join(deployment.models) or 'no model'}; {metering}"
    read = Finding(level=Level.OK, subject="config", text=text)
    return [read, *(_model(name) for name in deployment.sources), _port(deployment)]


def _model(name: str) -> Finding:
    subject = f"model {name}"
    try:
        path = check_foreign(resolve_model(name))
    except ConfigError as error:
        message, _, command = str(error).partition("; run: ")
        fix = (command,) if command else ()
        return Finding(level=Level.PROBLEM, subject=subject, text=message, fix=fix)
    if Path(path).expanduser().is_dir():
        return Finding(level=Level.OK, subject=subject, text=f"ready in {path}")
    text = "not one of ours and no folder: Ray loads it from where it finds that name"
    return Finding(level=Level.NOTE, subject=subject, text=text)


def _port(deployment: Deployment) -> Finding:
    try:
        require_free_port(deployment)
    except ConfigError as error:
        message, _, advice = str(error).partition("; ")
        return Finding(level=Level.PROBLEM, subject="port", text=message, fix=(advice,))
    return Finding(
        level=Level.OK, subject="port", text=f"{deployment.host}:{deployment.port} is free"
    )


def _shared_gpus(scope: Scope) -> list[Finding]:
    """A warning where the file gives a replica a part of a GPU."""
    parts = [gpus for block in scope.llm_configs() for gpus in _gpu_requests(block) if 0 < gpus < 1]
    if not parts:
        return []
    text = (
        f"{scope.file} gives a replica {min(parts):g} of a GPU: a GPU has one counter, so its "
        "joules are split by what was allotted, whatever each replica draws"
    )
    fix = ("give every replica whole GPUs",)
    return [Finding(level=Level.WARNING, subject="GPU share", text=text, fix=fix)]


def _gpu_requests(block: Mapping[str, Any]) -> list[float]:
    """How many GPUs each bundle and actor of one LLMConfig asks for."""
    bundles = mappings(mapping(block.get("placement_group_config")).get("bundles"))
    options = mapping(mapping(block.get("deployment_config")).get("ray_actor_options"))
    asked = [bundle.get("GPU") for bundle in bundles]
    return [float(n) for n in (*asked, options.get("num_gpus")) if isinstance(n, int | float)]


def _auth(scope: Scope) -> Finding:
    """Whether all of Ray's processes will agree on token authentication.

    With RAY_AUTH_MODE unset Ray 2.60 decides by the command: a new cluster of `ray.init` has it on,
    `ray start` where a token exists, a client that is given an address has it off.
    """
    environ, has_token = scope.environ, _has_token(scope.environ)
    mode = environ.get(_MODE)
    facts = {"mode": mode, "has_token": has_token}
    agree = f"export {_MODE}=disabled   # or token; alike for every process and pod"
    level = Level.OK
    fix: tuple[str, ...] = ()
    if mode is not None and mode.lower() not in _MODES:
        level, fix = Level.PROBLEM, (agree,)
        text = f"{_MODE}={mode!r}; allowed: {', '.join(_MODES)}"
    elif mode is None:
        text = f"{_MODE} is not set; `jouleserve serve` sets disabled for what it starts"
        if has_token:
            level, fix = Level.NOTE, (agree,)
            text += "; a token exists, so other commands of Ray may take mode token"
            if environ.get("RAY_ADDRESS"):
                level = Level.WARNING
                text += ": one that follows RAY_ADDRESS does not, and is refused by such a cluster"
    elif mode.lower() == "token" and not has_token:
        level, fix = Level.PROBLEM, ("ray get-auth-token --generate",)
        text = f"{_MODE}=token, and there is no token"
    else:
        text = f"{_MODE}={mode.lower()}"
        if mode.lower() == "disabled":
            text += ": keep Ray's ports on a trusted network"
    return Finding(level=level, subject="Ray authentication", text=text, fix=fix, facts=facts)


def _has_token(environ: Mapping[str, str]) -> bool:
    if environ.get(_TOKEN):
        return True
    home = environ.get("HOME", "~")
    path = Path(environ.get(_TOKEN_PATH) or Path(home) / ".ray" / "auth_token").expanduser()
    return path.is_file()


def _address(environ: Mapping[str, str]) -> list[Finding]:
    address = environ.get("RAY_ADDRESS")
    if not address:
        return []
    text = f"RAY_ADDRESS={address}: serving joins that cluster instead of starting one here"
    return [Finding(level=Level.NOTE, subject="Ray cluster", text=text)]
