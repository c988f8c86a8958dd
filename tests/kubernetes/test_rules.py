"""The PrometheusRule objects are the rule files of configs/prometheus."""

import pytest
import yaml
from manifests import FOLDER

from serve_app.observers import prometheus_rules as tool


def test_the_objects_are_the_files():
    if not tool.SOURCE.is_dir():
        pytest.skip("no configs/prometheus here")
    assert tool.TARGET == FOLDER / "base" / "prometheus-rules.yaml"
    assert tool.TARGET.read_text() == tool.render(), "run `make docs`"


def test_each_file_of_rules_becomes_an_object_and_what_is_none_does_not(tmp_path):
    group = {"name": "g", "rules": [{"alert": "A", "expr": "up == 0\nor up == 2\n", "for": "5m"}]}
    (tmp_path / "b.alerts.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    (tmp_path / "a.rules.yaml").write_text(yaml.safe_dump({"groups": [{**group, "name": "ä"}]}))
    (tmp_path / "prometheus.example.yaml").write_text("scrape_configs: []\n")
    text = tool.render(tmp_path)
    first, second = yaml.safe_load_all(text)
    assert [one["metadata"]["name"] for one in (first, second)] == ["a-rules", "b-alerts"]
    assert second["spec"]["groups"] == [group]
    assert "expr: |" in text


def test_every_rule_of_the_base_has_a_name_of_its_own():
    documents = yaml.safe_load_all((FOLDER / "base" / "prometheus-rules.yaml").read_text())
    groups = [group["name"] for one in documents for group in one["spec"]["groups"]]
    assert len(set(groups)) == len(groups) > 1
