"""A deployment that may have no replica: it wakes for a request, sleeps when nobody asks, and wakes.

The same service, to start no other, speaks TLS and asks for API keys.
"""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import openai
import pytest
from running_service import BIN, DEPLOYMENT, MODEL, eventually, started
from secured import Secured, bearer, files_with
from serve_checks import CHAT, PARIS, check_error

from serve_app.security.scopes import Scope

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(420)]


def may_sleep(config):
    arguments = config["applications"][0]["args"]
    options = arguments["llm_configs"][0]["deployment_config"]
    options["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1}
    # A start is believed to be cheap, so that it pays to sleep after twice these seconds.
    arguments["energy"]["policy"] |= {"cold_start_s": 5, "dwell_down_s": 10}


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    return Secured(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def service(tmp_path_factory, secured):
    """Whose own requests, and the first question of `jouleserve serve`, have the operator's key."""

    def edit(config):
        may_sleep(config)
        secured.edit(config)

    environment = {"JOULESERVE_API_KEY": secured.operator}
    with started(tmp_path_factory.mktemp("zero"), edit, environment) as service:
        yield service


def running(service):
    deployment = service.status()["deployments"][DEPLOYMENT]
    return sum(one["state"] == "RUNNING" for one in deployment["replicas"])


def last_decision(service):
    lines = service.controller_log().splitlines()
    said = [line for line in lines if "jouleserve_fleet_decision" in line]
    return json.loads(said[-1].partition("jouleserve_fleet_decision ")[2])


def test_a_service_sleeps_when_nobody_asks_and_wakes_for_a_request(service):
    """`jouleserve serve` asks a first question of its own, which has woken it."""
    first = service.energy()
    assert (running(service), first["num_replicas"]) == (1, 1)
    eventually(lambda: running(service) == 0, 90, "nobody asks: no replica", every_s=1.0)
    decision = last_decision(service)
    assert (decision["reason"], decision["chosen_num_replicas"]) == ("no_traffic", 0)
    asleep = eventually(
        lambda: (books := service.energy())["num_replicas"] == 0 and books, 15, "nobody reports"
    )
    assert asleep["meter_joules"] >= first["meter_joules"] > 0.0  # not lost with the replica
    question = {"model": MODEL, "messages": PARIS, "max_tokens": 16, "temperature": 0}
    status, _, answer = service.request("POST", CHAT, question, timeout_s=300)
    assert status == 200, answer
    assert "Paris" in json.loads(answer)["choices"][0]["message"]["content"]
    assert running(service) == 1


# ---- TLS and API keys; the replica is awake


PROMPT = "marker-prompt-5f0c"
HEADER = "marker-header-77aa"
WRONG = "jsk-marker-wrong-key-31d9"
QUESTION = {
    "model": MODEL,
    "messages": [{"role": "user", "content": f"Say hello. {PROMPT}"}],
    "max_tokens": 2,
}


def test_the_certificate_is_the_one_of_the_file_and_plain_http_is_not_spoken(service):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    shown = ssl.get_server_certificate(("127.0.0.1", service.port))
    assert shown.strip() == Path(service.certificate).read_text().strip()
    plain = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        plain.request("GET", "/-/healthz")
        plain.getresponse()
    assert service.request("GET", "/-/healthz")[0] == 200  # with TLS, and it needs no key


def test_who_may_call_what(service, secured):
    def status(method, path, key, body=None):
        return service.request(method, path, body, {"Authorization": f"Bearer {key}"})[0]

    asked = {"X-Marker": HEADER}
    ok = service.request("POST", CHAT, QUESTION, bearer(secured.client) | asked)
    assert ok[0] == 200, ok[2]
    for key in (WRONG, ""):
        refused = service.request("POST", CHAT, QUESTION, bearer(key) | asked)
        assert refused[0] == 401
        assert refused[1]["www-authenticate"] == "Bearer"
        assert check_error(refused[2])["code"] == "invalid_api_key"
    assert status("GET", "/v1/models", secured.client) == 200
    for path in ("/metrics", "/jouleserve/metrics", "/jouleserve/energy"):
        assert status("GET", path, secured.prometheus) == 200
        assert status("GET", path, secured.client) == 403
        assert status("GET", path, WRONG) == 401
    assert status("POST", CHAT, secured.prometheus, QUESTION) == 403
    for path in ("/jouleserve/approve", "//v1/models", "/V1/models", "/nothing"):
        assert status("GET", path, secured.operator) == 403  # it has no admin key's scope
    assert status("GET", "/v1/nothing", secured.client) == 404


def test_openais_client_hears_it_in_its_own_terms(service, secured):
    def client(key):
        trust = openai.DefaultHttpxClient(
            verify=ssl.create_default_context(cafile=service.certificate)
        )
        return openai.OpenAI(
            base_url=f"{service.url}/v1", api_key=key, max_retries=0, http_client=trust
        )

    assert [model.id for model in client(secured.client).models.list()] == [MODEL]
    with pytest.raises(openai.AuthenticationError) as refused:
        client(WRONG).models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        client(secured.prometheus).models.list()


def test_a_body_without_an_announced_length_is_cut_off(service, secured):
    def chunks():
        for _ in range(40):
            yield b" " * 2**16

    connection = service._connection(60)
    try:
        head = {"Transfer-Encoding": "chunked", **bearer(secured.client)}
        with suppress(BrokenPipeError, ConnectionResetError):  # it was answered meanwhile
            connection.request("POST", CHAT, chunks(), head, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413
        check_error(response.read(), "max_body_bytes")
    finally:
        connection.close()
    announced = {"Content-Length": str(2**30), **bearer(secured.client)}
    assert service.request("POST", CHAT, b"{}", announced)[0] == 413


def test_keys_change_without_a_restart(service, secured):
    key = secured.add("newcomer", Scope.INFERENCE)

    def models():
        return service.request("GET", "/v1/models", None, bearer(key))[0]

    eventually(lambda: models() == 200, 5, "the new key is good")
    listed = subprocess.run(
        [BIN / "jouleserve", "key", "list", "--file", secured.file, "--json"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "newcomer" in {one["name"] for one in json.loads(listed.stdout)["keys"]}
    secured.remove("newcomer")
    eventually(lambda: models() == 401, 5, "the revoked key is not")
    good = secured.file.read_bytes()
    secured.file.write_bytes(b"- {name: broken")
    try:
        eventually(
            lambda: (
                "jouleserve_api_keys_file_in_force{" in (text := service.metrics())
                and any(
                    line.startswith("jouleserve_api_keys_file_in_force{") and line.endswith(" 0.0")
                    for line in text.splitlines()
                )
            ),
            15,
            "the metric says that the file is broken",
        )
        assert service.request("GET", "/v1/models")[0] == 200  # the keys in force stay
    finally:
        secured.file.write_bytes(good)


def test_the_request_log_knows_the_tenant_by_its_key(service):
    def tenants():
        report = service.report("--by", "tenant")
        return {row["tenant"] for row in report["groups"]} >= {"tenant-a", "operator"} and report

    eventually(tenants, 10, "both tenants have rows", every_s=1.0)


def test_nothing_secret_is_in_logs_or_metrics(service, secured):
    """Looks into everything that Ray, vLLM and we have written, on whatever level it is."""
    markers = [PROMPT, HEADER, WRONG, secured.client, secured.operator, secured.prometheus]
    logs = service.ray_logs()
    assert files_with([b"GET /v1/models 200"], [logs])  # the access logs are among them
    assert files_with([marker.encode() for marker in markers], [logs, service.folder]) == []
    shown = service.metrics()
    assert "jouleserve_http_refused_requests_total" in shown
    assert [marker for marker in markers if marker in shown] == []
