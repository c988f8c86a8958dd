"""docs/request-log.md names every field and every setting."""

import re
from pathlib import Path

import yaml

from serve_app.request_log.row import FIELDS
from serve_app.request_log.settings import RequestLogSettings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "request-log.md").read_text()


def test_every_field_of_a_row_is_described():
    described = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)))
    assert sorted(described) == sorted(FIELDS)


def test_the_settings_shown_are_the_defaults():
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert RequestLogSettings(**block["energy"]["request_log"]) == RequestLogSettings()
    assert block["energy"]["request_log"].keys() == RequestLogSettings.model_fields.keys()
