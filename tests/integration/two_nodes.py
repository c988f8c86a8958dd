"""Two Ray nodes on this machine, one engine on each; one node goes under load and comes back.

    python tests/integration/two_nodes.py --out docs/results/two-nodes

Deployed with `serve deploy`. Requests are not streamed: each is either answered or lost, and none of
those that were accepted may be lost. Prometheus and Alertmanager are the real ones on the shipped
rules, with shortened windows; the page's data are read once a second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import yaml

os.environ["RAY_AUTH_MODE"] = "disabled"
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "fakes"), str(HERE.parent / "alerts")]

from monitoring import Monitoring  # noqa: E402
from power_loop import described  # noqa: E402
from running_service import BIN, DEPLOYMENT, MODEL, REPOSITORY, eventually, free_port  # noqa: E402

START_S, LOAD_S, LOST_AT_S, BACK_AT_S = 240.0, 100.0, 30.0, 60.0
EVERY_S = 1.0  # between requests


@dataclass
class Answer:
    """One request: when it was sent, how it ended."""

    sent_s: float
    status: int
    ended_s: float
    text: str = ""
    joules: float | None = None


@dataclass
class Story:
    """What was seen. Times are seconds since the load began."""

    began_s: float
    answers: list[Answer] = field(default_factory=list)
    seen: list[dict] = field(default_factory=list)
    lost_s: float | None = None
    back_s: float | None = None

    def now_s(self):
        return time.monotonic() - self.began_s


def get(port, path, timeout_s=10):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read()
        if response.status != HTTPStatus.OK:
            raise ConnectionError(f"{path} answers {response.status}")
        return json.loads(text)
    finally:
        connection.close()


def serve_file(folder, port):
    """serve_config.yaml with two replicas, and two ingresses, that cannot be on one node."""
    config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    args = config["applications"][0]["args"]
    (llm,) = args["llm_configs"]
    llm["placement_group_config"] = {"bundles": [{"CPU": 0.25, "engine": 0.5}]}
    options = llm["deployment_config"]
    options |= {
        "autoscaling_config": {"min_replicas": 2, "max_replicas": 2},
        "ray_actor_options": {"num_cpus": 0.25, "resources": {"engine": 0.5}},
    }
    # Serve's proxy asks the ingress of its own node: each node has one.
    args["ingress_deployment_config"] |= {"num_replicas": 2, "max_replicas_per_node": 1}
    args["energy"]["request_log"] = {"folder": str(folder / "requests")}
    args["energy"]["decision_log"] = {"folder": str(folder / "decisions")}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def ask(port, story, number):
    answer = Answer(story.now_s(), 0, 0.0)
    body = {
        "model": MODEL, "max_tokens": 24, "temperature": 0, "ignore_eos": True,
        "messages": [{"role": "user", "content": f"Tell me something about the number {number}."}],
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        text = response.read().decode()
        answer.status = response.status
        if response.status == 200:
            answer.joules = json.loads(text)["energy"]["joules"]
        else:
            answer.text = text[:200]
    except (OSError, http.client.HTTPException) as error:
        answer.text = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    answer.ended_s = story.now_s()
    story.answers.append(answer)


def watch(port, story, over):
    while not over.is_set():
        try:
            data = get(port, "/energy/data?last=5", 5)
            rows = data["history"].get(DEPLOYMENT) or [{}]
            energy = data["energy"]
            told = sum(
                energy[f"{name}_joules"] for name in ("attributed", "open", "idle", "unattributed")
            )
            story.seen.append(
                {
                    "time_s": story.now_s(),
                    "replicas": energy["num_replicas"],
                    "draw_watts": sum((rows[-1].get("draw_watts") or {}).values()),
                    "meter_joules": energy["meter_joules"],
                    "residual_joules": told - energy["prepaid_joules"] - energy["meter_joules"],
                }
            )
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            story.seen.append({"time_s": story.now_s(), "error": f"{type(error).__name__}"})
        over.wait(1.0)


def run(cluster, second, port):
    """The load, with the second node lost and a new one in its place."""
    story, over, clients = Story(time.monotonic()), threading.Event(), []
    watcher = threading.Thread(target=watch, args=(port, story, over))
    watcher.start()
    number = 0
    while story.now_s() < LOAD_S:
        client = threading.Thread(target=ask, args=(port, story, number))
        client.start()
        clients.append(client)
        number += 1
        if story.lost_s is None and story.now_s() >= LOST_AT_S:
            cluster.remove_node(second, allow_graceful=False)
            story.lost_s = story.now_s()
            print(f"the second node is gone at {story.lost_s:.0f} s", flush=True)
        if story.back_s is None and story.now_s() >= BACK_AT_S:
            add(cluster)
            story.back_s = story.now_s()
            print(f"another node is there at {story.back_s:.0f} s", flush=True)
        time.sleep(EVERY_S)
    for client in clients:
        client.join()
    eventually(lambda: get(port, "/jouleserve/energy")["num_replicas"] == 2, 240, "two replicas")
    healed_s = story.now_s()
    time.sleep(3.0)
    over.set()
    watcher.join()
    return story, healed_s


def add(cluster):
    return cluster.add_node(num_cpus=2, resources={"engine": 1})


def measure(folder):
    from ray.cluster_utils import Cluster

    port, dashboard = free_port(), free_port()
    head = {
        "num_cpus": 2, "resources": {"engine": 1}, "include_dashboard": True,
        "dashboard_host": "127.0.0.1", "dashboard_port": dashboard,
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monitoring = Monitoring(folder, port)
    try:
        second = add(cluster)
        cluster.wait_for_nodes()
        address = f"http://127.0.0.1:{dashboard}"
        command = [BIN / "serve", "deploy", serve_file(folder, port), "-a", address]
        subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
        eventually(
            lambda: get(port, "/jouleserve/energy")["num_replicas"] == 2,
            START_S,
            "two replicas report",
            every_s=1.0,
        )
        print("two nodes, two replicas", flush=True)
        monitoring.start()
        story, healed_s = run(cluster, second, port)
        books = get(port, "/jouleserve/energy")
        alerts = sorted({(name, status) for name, status, _ in monitoring.webhook.events})
        return story, healed_s, books, alerts
    finally:
        monitoring.stop()
        cluster.shutdown()


def report(story, healed_s, books, alerts):
    answers = story.answers
    answered = [one for one in answers if one.status == 200]
    refused = [one for one in answers if one.status in {429, 503}]
    lost = [one for one in answers if one not in answered and one not in refused]
    told = [one for one in story.seen if "replicas" in one]
    residual = max(abs(one["residual_joules"]) for one in told)
    least = min(one["replicas"] for one in told)
    return {
        "commit": described(),
        "requests": len(answers),
        "answered": len(answered),
        "told_to_come_back": len(refused),
        "lost": [vars(one) for one in lost],
        "in_flight_at_the_loss": sum(one.sent_s <= story.lost_s <= one.ended_s for one in answers),
        "node_lost_s": story.lost_s,
        "node_back_s": story.back_s,
        "healed_s": healed_s,
        "replicas_seen": [least, max(one["replicas"] for one in told)],
        "books_residual_joules": residual,
        "meter_joules": books["meter_joules"],
        "page_unanswered": sum("error" in one for one in story.seen),
        "page_asked": len(story.seen),
        "alerts": [list(one) for one in alerts],
    }


def table(found):
    lost = len(found["lost"])
    alerts = ", ".join(f"{name} {status}" for name, status in found["alerts"]) or "none"
    return f"""# Two nodes, one lost under load (measured)

`make two-nodes` at {found["commit"]}: two Ray nodes on one machine, deployed with `serve deploy`, one CPU engine on
each; a request a second for {LOAD_S:.0f} s, not streamed; the second node is killed and another one added.

| | |
| --- | ---: |
| requests | {found["requests"]} |
| answered | {found["answered"]} |
| told to come back (429, 503) | {found["told_to_come_back"]} |
| lost | {lost} |
| in flight when the node went | {found["in_flight_at_the_loss"]} |
| node lost, another one there, s | {found["node_lost_s"]:.0f}, {found["node_back_s"]:.0f} |
| two replicas report again, s | {found["healed_s"]:.0f} |
| replicas on the page, least and most | {found["replicas_seen"][0]}, {found["replicas_seen"][1]} |
| books: largest residual, J of {found["meter_joules"]:.0f} | {found["books_residual_joules"]:.2g} |
| the page's data not answered | {found["page_unanswered"]} of {found["page_asked"]} |

Alerts at the webhook (windows shortened): {alerts}.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jouleserve-two-nodes-") as folder:
        found = report(*measure(Path(folder)))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "measured.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "report.md").write_text(table(found))
    print(table(found))
    return 1 if found["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
