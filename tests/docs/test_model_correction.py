"""docs/model-correction.md: its settings are the defaults, its verdicts and metrics are ours."""

import re
from pathlib import Path

import yaml

from policies.model.drift import Verdict
from serve_app.observers.metrics import METRICS
from serve_app.settings import EnergySettings, ModelCorrectionSettings

PAGE = (Path(__file__).parents[2] / "docs" / "model-correction.md").read_text(encoding="utf-8")


def test_the_settings_shown_are_the_defaults():
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    shown = block["energy"]["model_correction"]
    assert ModelCorrectionSettings(**shown) == EnergySettings().model_correction
    assert shown.keys() == ModelCorrectionSettings.model_fields.keys()


def test_every_verdict_is_explained_in_its_order():
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == [one.value for one in Verdict]


def test_every_metric_of_the_model_is_named():
    named = set(re.findall(r"`(jouleserve_model_\w+?)(?:_total)?`", PAGE))
    assert named == {one.name for one in METRICS if one.name.startswith("jouleserve_model_")}
