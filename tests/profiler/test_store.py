from __future__ import annotations

import csv
from dataclasses import replace

import pytest
from profiler_planted import planted_samples

from policies.core.errors import ConfigError
from serve_app.profiler.steps import Step
from serve_app.profiler.store import SAMPLES, STEPS, SampleStore, load_manifest, load_samples

MANIFEST = {"device": "planted", "config": {"model": "m", "seed": 0}, "started": "now"}
STEP = Step(start_s=0.1, end_s=0.30000000000000004, num_seqs=1, kv_tokens=9, prefill_tokens=0)


@pytest.fixture
def samples():
    return planted_samples(noise=0.1, repeats=1)


def test_samples_come_back_exactly(tmp_path, samples):
    store = SampleStore(tmp_path, MANIFEST)
    for sample in samples:
        store.append([sample], [STEP])
    assert load_samples(tmp_path) == samples
    assert load_manifest(tmp_path) == MANIFEST
    lines = (tmp_path / STEPS).read_text().splitlines()
    assert len(lines) == 1 + len(samples)
    assert "0.30000000000000004" in lines[1]


def test_a_second_run_knows_what_is_done(tmp_path, samples):
    SampleStore(tmp_path, MANIFEST).append([samples[1]], [])
    again = SampleStore(tmp_path, MANIFEST | {"started": "later"})
    assert again.done == {(samples[1].point, 1)}
    again.append([samples[2]], [])
    assert load_samples(tmp_path) == samples[1:3]
    assert load_manifest(tmp_path)["started"] == "now"


def test_a_disturbed_run_is_tried_again(tmp_path, samples):
    SampleStore(tmp_path, MANIFEST).append([replace(samples[1], steady=False)], [])
    assert SampleStore(tmp_path, MANIFEST).done == set()


def test_a_line_cut_short_by_a_crash_is_measured_again(tmp_path, samples):
    store = SampleStore(tmp_path, MANIFEST)
    store.append([samples[1]], [])
    store.append([samples[2]], [])
    path = tmp_path / SAMPLES
    path.write_text(path.read_text()[:-20])
    again = SampleStore(tmp_path, MANIFEST)
    assert again.done == {(samples[1].point, 1)}
    again.append([samples[2]], [])
    assert load_samples(tmp_path) == samples[1:3]


@pytest.mark.parametrize("part", ["config", "device"])
def test_a_folder_of_another_configuration_is_refused(tmp_path, part):
    SampleStore(tmp_path, MANIFEST)
    with pytest.raises(ConfigError, match=f"{part} is .*choose another --samples"):
        SampleStore(tmp_path, MANIFEST | {part: "other"})


def test_damage_is_named_by_line_and_column(tmp_path, samples):
    SampleStore(tmp_path, MANIFEST).append(samples[:3], [])
    path = tmp_path / SAMPLES
    text = path.read_text()
    path.write_text(
        text.replace(f"{samples[1].point},{samples[1].kind}", f"{samples[1].point},bogus")
    )
    with pytest.raises(ConfigError, match=rf"{SAMPLES}:\d+: kind is .*allowed: idle, decode"):
        load_samples(tmp_path)
    path.write_text(text.replace("step_time_s", "step_time_ms"))
    with pytest.raises(ConfigError, match="no column step_time_s"):
        load_samples(tmp_path)


def without_columns(path, *names):
    """The table as a version that did not know these columns has written it."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    kept = [name for name in rows[0] if name not in names]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_a_folder_that_is_older_than_a_column_is_read_and_goes_on(tmp_path, samples):
    SampleStore(tmp_path, MANIFEST).append(samples[:2], [])
    without_columns(tmp_path / SAMPLES, "power_limit_watts", "gpu_draw_watts")
    assert load_samples(tmp_path) == samples[:2]
    limited = replace(samples[2], power_limit_watts=300.0, gpu_draw_watts=280.5)
    SampleStore(tmp_path, MANIFEST).append([limited], [STEP])
    assert load_samples(tmp_path) == [*samples[:2], limited]
    assert f"{limited.point}@300W,1," in (tmp_path / STEPS).read_text()


def test_a_column_that_every_sample_needs_is_never_absent(tmp_path, samples):
    SampleStore(tmp_path, MANIFEST).append(samples[:2], [])
    without_columns(tmp_path / SAMPLES, "window_s")
    with pytest.raises(ConfigError, match="no column window_s; needed: point, kind"):
        load_samples(tmp_path)


def test_a_run_under_a_power_limit_leaves_the_same_run_without_one_to_do(tmp_path, samples):
    limited = replace(samples[1], power_limit_watts=300.0)
    store = SampleStore(tmp_path, MANIFEST)
    store.append([limited], [])
    assert store.done == set()


def test_a_folder_without_samples_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=SAMPLES):
        load_samples(tmp_path)
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_parquet_holds_the_same_rows(tmp_path, samples):
    parquet = pytest.importorskip("pyarrow.parquet")
    store = SampleStore(tmp_path, MANIFEST)
    store.append(samples, [STEP, STEP])
    assert store.write_parquet()
    table = parquet.read_table(tmp_path / "samples.parquet").to_pydict()
    assert table["point"] == [s.point for s in samples]
    assert table["step_time_s"] == [s.step_time_s for s in samples]
    assert parquet.read_table(tmp_path / "steps.parquet").num_rows == 2
