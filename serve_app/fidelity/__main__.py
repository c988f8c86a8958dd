"""The simulator against the real engine: `python -m serve_app.fidelity --out FOLDER`.

Starts the default deployment, measures a calibration load and then three held-out loads in turn,
plays the same arrivals in the simulator, and writes report.md, report.json, runs.json, a picture
and a manifest. Nothing else may run on the machine meanwhile. A run that the machine disturbed is
measured again at the end, as long as there is time. `--again` compares what was measured before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from policies.core.errors import ConfigError, EnergyServeError
from serve_app.compare.configs import read_base, read_energy
from serve_app.deciders import load_profile
from serve_app.fidelity.judge import disturbances
from serve_app.fidelity.loads import Load, calibration, held_out
from serve_app.fidelity.observed import Observed
from serve_app.fidelity.outcome import CALIBRATION, Outcome, Session, compare
from serve_app.fidelity.picture import draw
from serve_app.fidelity.report import PICTURE, document, markdown, summary
from serve_app.fidelity.run import Rig
from serve_app.fidelity.service import Fleet
from serve_app.profiler.host import commit, host_facts, versions
from serve_app.repository import REPOSITORY
from serve_app.sections import require_section, write_section

SECTION = "fidelity"
LOGS = Path(".jouleserve") / "fidelity"


def main(arguments: list[str] | None = None) -> int:
    """Measure and compare; 0 where every load is within the target, else 1."""
    options = _parser().parse_args(arguments)
    try:
        if options.readme is not None:
            require_section(options.readme, SECTION)
        session = _read(options.out) if options.again else _measure(options)
        outcome = _written(session, options)
    except EnergyServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for load in outcome.loads:
        print(f"{load.name}: {load.verdict} ({load.counted} of {load.runs} runs count)")
    return 0 if all(load.verdict.startswith("within") for load in outcome.loads) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "serve_config.yaml")
    parser.add_argument("--rounds", type=int, default=3, help="runs per load that are to count")
    parser.add_argument("--budget-s", type=float, default=4500.0, help="no new run after it")
    parser.add_argument("--scale", type=float, default=1.0, help="shortens all loads")
    parser.add_argument("--loads", default="steady,burst,scale", help="which, separated by commas")
    parser.add_argument(
        "--readme", type=Path, help=f"page whose section {SECTION!r} is written; none without it"
    )
    parser.add_argument("--again", action="store_true", help="compare what was measured before")
    return parser


def _measure(options: argparse.Namespace) -> Session:
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {text}", file=sys.stderr, flush=True)

    wanted = options.loads.split(",")
    loads = [load for load in held_out(options.scale) if load.name in wanted]
    if len(loads) != len(wanted):
        known = ", ".join(load.name for load in held_out())
        raise ConfigError(f"--loads {options.loads}: allowed: {known}")
    logs = (LOGS / datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%SZ")).absolute()
    facts = host_facts()  # the load average before ours
    with Fleet(read_base(options.config), logs) as fleet:
        say("starting the service")
        fleet.wait_ready(say)
        rig = Rig(fleet, logs, say)
        sizes, idle_watts = rig.sizes, rig.idle_watts()
        say(f"{sizes}; idle {idle_watts:.2f} W")
        runs: list[Observed] = []
        session = Session(runs=(), sizes=sizes, idle_watts=idle_watts)
        _manifest(options, logs, facts)
        while time.monotonic() - began_s < options.budget_s:
            load = next_load(runs, [calibration(options.scale), *loads], options.rounds)
            if load is None:
                break
            runs.append(rig.measure(load))
            session = Session(runs=tuple(runs), sizes=sizes, idle_watts=idle_watts)
            _write_json(options.out / "runs.json", session.to_dict())
            for why in disturbances(runs)[-1:]:
                say(f"{load.name}: {'; '.join(why) or 'undisturbed'}")
    return session


def next_load(runs: list[Observed], loads: list[Load], rounds: int) -> Load | None:
    """What to measure next: the load with the fewest runs that count, in their order. The
    calibration once. None where all have enough."""
    reasons = disturbances(runs)
    good = {load.name: 0 for load in loads}
    seen = dict(good)
    for run, why in zip(runs, reasons, strict=True):
        seen[run.load] += 1
        good[run.load] += not why
    short = [
        load for load in loads if good[load.name] < (1 if load.name == CALIBRATION else rounds)
    ]
    return min(short, key=lambda load: (good[load.name], seen[load.name]), default=None)


def _written(session: Session, options: argparse.Namespace) -> Outcome:
    name = read_energy(options.config).get("profile")
    profile = load_profile(name)
    if profile is None:
        raise ConfigError(f"{options.config}: energy.profile: missing")
    outcome = compare(session, profile)
    loads = {load.name: load for load in held_out(options.scale)}
    page = markdown(outcome, session, loads, profile.name)
    (options.out / "report.md").write_text(page, encoding="utf-8")
    _write_json(options.out / "report.json", document(outcome, session))
    draw(outcome, options.out / PICTURE)
    if options.readme is not None:
        link = f"Figures, constants and all runs: [{options.out.name}]({options.out}/report.md)."
        write_section(options.readme, SECTION, summary(outcome, link))
    return outcome


def _read(folder: Path) -> Session:
    try:
        text = (folder / "runs.json").read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--again: {folder / 'runs.json'}: {error.strerror}") from None
    return Session.from_dict(json.loads(text))


def _manifest(options: argparse.Namespace, logs: Path, facts: dict[str, Any]) -> None:
    _write_json(
        options.out / "manifest.json",
        {
            "schema_version": 1,
            "started_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python -m serve_app.fidelity", *sys.argv[1:]]),
            "source": commit(REPOSITORY),
            "machine": facts,
            "versions": versions(),
            "options": json.loads(json.dumps(vars(options), default=str)),
            "logs": str(logs),
        },
    )


def _write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
