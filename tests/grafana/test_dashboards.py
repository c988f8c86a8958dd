"""The dashboards are what Grafana's own types allow, and every panel asks a question."""

import json
import re
from pathlib import Path

import pytest
from dashboards import FILES, graphs, load, panels, queries, replaced, variables
from jsonschema import Draft7Validator

SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "grafana" / "schema.json").read_text())
# Of Grafana's list of units; `suffix:` takes any text.
UNITS = {"none", "joule", "watt", "s", "percentunit", "reqps"}
CURRENT_SCHEMA_VERSION = 42  # of @grafana/schema 13
FILTERS = {
    "jouleserve-fleet": {"application", "deployment", "model"},
    "jouleserve-replica": {"application", "deployment", "model", "replica"},
}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def board(request):
    return load(request.param)


def faults(schema, value):
    return [
        f"{error.json_path}: {error.message}"
        for error in Draft7Validator(schema).iter_errors(value)
    ]


def test_there_are_two_dashboards_with_stable_names():
    assert {path.stem: load(path)["uid"] for path in FILES} == {name: name for name in FILTERS}


def test_a_dashboard_obeys_the_types_of_grafana(board):
    assert faults(SCHEMA["dashboard"], board) == []
    assert board["schemaVersion"] == CURRENT_SCHEMA_VERSION


def test_options_and_custom_fields_obey_the_types_of_their_panel(board):
    for panel in graphs(board):
        kind, defaults = panel["type"], panel["fieldConfig"]["defaults"]
        assert faults(SCHEMA["options"][kind], panel["options"]) == [], panel["title"]
        if kind in SCHEMA["custom"]:
            custom = SCHEMA["custom"][kind]
            assert faults(custom, defaults.get("custom", {})) == [], panel["title"]
            assert faults(custom, overridden(panel)) == [], panel["title"]
        else:
            assert "custom" not in defaults, panel["title"]


def overridden(panel):
    properties = [one for rule in panel["fieldConfig"]["overrides"] for one in rule["properties"]]
    known = {"unit", "color", "max", "decimals"}
    assert all(p["id"] in known or p["id"].startswith("custom.") for p in properties)
    return {p["id"].removeprefix("custom."): p["value"] for p in properties if "." in p["id"]}


def test_a_typo_is_a_fault(board):
    panel = graphs(board)[0]
    panel["fieldConfig"]["defaults"]["unti"] = "joule"
    panel["options"]["legned"] = {}
    assert faults(SCHEMA["dashboard"], board)
    assert faults(SCHEMA["options"][panel["type"]], panel["options"])


def test_every_panel_asks_a_question_and_says_what_it_shows(board):
    titles = [panel["title"] for panel in panels(board)]
    assert all(title.endswith("?") for title in titles)
    assert len(set(titles)) == len(titles)
    assert all(len(panel["description"]) > 20 for panel in graphs(board))


def test_every_panel_has_a_unit_and_thresholds_in_order(board):
    for panel in graphs(board):
        fields = [panel["fieldConfig"]["defaults"]]
        units = [fields[0]["unit"], panel["options"].get("yAxis", {}).get("unit")]
        units += [
            one["value"]
            for rule in panel["fieldConfig"]["overrides"]
            for one in rule["properties"]
            if one["id"] == "unit"
        ]
        assert {unit for unit in units if unit and not unit.startswith("suffix:")} <= UNITS
        if panel["type"] != "heatmap":
            steps = [step["value"] for step in fields[0]["thresholds"]["steps"]]
            assert steps[0] is None
            assert steps[1:] == sorted(steps[1:])


def test_ids_are_unique_and_no_panel_covers_another(board):
    ids = [panel["id"] for panel in panels(board)]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in panels(board):
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_query_goes_to_the_data_source_that_the_user_chooses(board):
    known = variables(board)
    assert known["datasource"]["type"] == "datasource"
    assert known["datasource"]["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in graphs(board):
        assert all(one["datasource"] == chosen for one in (panel, *panel["targets"]))
        assert len({one["refId"] for one in panel["targets"]}) == len(panel["targets"])
    asking = [one for one in known.values() if one["type"] == "query"]
    assert all(one["datasource"] == chosen for one in asking)
    assert {one["name"] for one in asking} == FILTERS[board["uid"]]


def test_each_filter_narrows_the_next_and_may_be_all(board):
    asking = [one for one in board["templating"]["list"] if one["type"] == "query"]
    for place, one in enumerate(asking):
        query = one["query"]["query"]
        before = [other["name"] for other in asking[:place]]
        assert re.findall(r'(\w+)=~"\$\1"', query) == before
        assert query.endswith(f", {one['name']})")
        assert one["multi"] and one["includeAll"] and one["allValue"] == ".*"


def test_a_link_to_a_replica_names_variables_that_its_dashboard_has(board):
    (replica,) = (load(path) for path in FILES if path.stem == "jouleserve-replica")
    for panel in graphs(board):
        for link in panel["fieldConfig"]["defaults"].get("links", ()):
            assert link["url"].startswith(f"/d/{replica['uid']}?")
            given = set(re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", link["url"]))
            assert {a or b for a, b in given} == set(variables(replica))
            assert "replica" in panel["targets"][0]["legendFormat"]


def test_an_unknown_variable_is_a_fault(board):
    with pytest.raises(KeyError):
        replaced('up{job="$jbo"}', board)


def test_there_is_something_to_ask():
    assert len(queries()) > 60
