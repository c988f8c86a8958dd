"""The decision log on disk: bounded, each file replayable alone, and a crash costs one line."""

import pytest
from recorded import PROFILES, records, seen

from policies.core.errors import ConfigError
from serve_app.decisions.log import DecisionLog, outcome_line, read_decisions
from serve_app.decisions.record import differences, replayed

(PROFILE,) = PROFILES


def written(folder, number=12, max_bytes=1 << 30):
    log = DecisionLog(folder, "llm/app", max_bytes)
    log.profile(PROFILE, PROFILES[PROFILE])
    log.profile(PROFILE, PROFILES[PROFILE])
    found = records([seen(float(k), 10.0 * k) for k in range(1, number + 1)])
    for one in found:
        log.line(one.model_dump_json())
    log.line(outcome_line(found[0].id, {"joules": 5.0}))
    log.close()
    return found


def test_what_was_written_is_read_and_replayed(tmp_path):
    found = written(tmp_path)
    read = read_decisions(tmp_path)
    assert read.records == found
    assert read.outcomes == {"d0": {"joules": 5.0}}
    assert read.profiles == PROFILES
    (path,) = tmp_path.iterdir()
    assert path.name == "llm_app.decisions.jsonl"
    assert read_decisions(path).records == found
    assert sum('"profile"' in line and '"data"' in line for line in path.open()) == 1


def test_files_stay_below_the_bound_and_each_can_be_replayed_alone(tmp_path):
    size = len(records([seen(1.0, 10.0)])[0].model_dump_json())
    bound = 4 * (8 * size)
    written(tmp_path, 60, bound)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    assert sum(one.stat().st_size for one in files) <= bound + 4 * size
    for one in files:
        read = read_decisions(one)
        assert read.records
        for record in read.records:
            assert differences(record, replayed(record, read.profiles)) == []
    kept = read_decisions(tmp_path).records
    assert kept[-1].id == "d59"
    assert [one.time_utc_s for one in kept] == sorted(one.time_utc_s for one in kept)


def test_a_cut_last_line_is_left_out_and_a_broken_one_is_named(tmp_path):
    found = written(tmp_path, 3)
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    path.write_text(text[:-20])
    assert read_decisions(path).records == found
    lines = text.splitlines()
    lines[1] = lines[1][:50]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"llm_app.decisions.jsonl:2: decision record: not JSON"):
        read_decisions(path)
    with pytest.raises(ConfigError, match="no decision log"):
        read_decisions(tmp_path / "elsewhere")


def test_a_disk_that_takes_nothing_is_said_once_and_nothing_is_raised(tmp_path, caplog):
    log = DecisionLog(tmp_path, "llm", 1 << 20)
    log.stream.close()
    log.stream = open("/dev/full", "w")  # noqa: SIM115
    for _ in range(3):
        log.line("x" * 10_000)
    assert caplog.text.count("takes nothing") == 1
