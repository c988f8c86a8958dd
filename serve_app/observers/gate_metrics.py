"""The metrics of the door of the HTTP API, as each process that has one tells the ledger."""

from __future__ import annotations

from serve_app.observers.metrics import MetricSpec

GATE_LABELS = ("application", "deployment", "replica")

GATE_METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        name="jouleserve_http_refused_requests",
        kind="counter",
        help="Requests refused before their body was read, by reason: no_key, wrong_key, "
        "expired_key (401), no_scope (403), body (413), headers (431).",
        labels=("reason",),
    ),
    MetricSpec(
        name="jouleserve_api_keys",
        kind="gauge",
        help="API keys in force, expired ones included; absent where no keys are asked for.",
    ),
    MetricSpec(
        name="jouleserve_api_keys_file_in_force",
        kind="gauge",
        help="1 if the keys in force are what the file says, 0 if it could not be read; absent "
        "where no keys are asked for.",
    ),
    MetricSpec(
        name="jouleserve_api_keys_file_errors",
        kind="counter",
        help="Contents of the API keys file that could not be read.",
    ),
)
