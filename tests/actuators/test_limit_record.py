import json
import os
import subprocess
import sys

import pytest

from policies.core.errors import ActuationError, ActuationRefused
from serve_app.actuators.limit_record import Found, LimitRecord, RecordFile, read_record

RECORD = LimitRecord(
    gpus={
        "GPU-1": Found(watts=700.0, asked_watts=(300.0, 450.0)),
        "GPU-2": Found(watts=650.5, clocks=True),
    }
)


@pytest.fixture
def file(tmp_path):
    file = RecordFile(tmp_path / "new" / "limits.json")
    yield file
    file.close()


def test_a_record_comes_back_exactly_and_goes_when_it_is_removed(file):
    assert file.read() is None
    file.write(RECORD)
    assert read_record(file.path) == RECORD
    one = LimitRecord(gpus={"GPU-1": Found(watts=700.0)})
    file.write(one)
    assert file.read() == one
    file.remove()
    file.remove()
    assert read_record(file.path) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema_version": 1}',
        json.dumps({"schema_version": 2, "gpus": {"GPU-1": {"found_watts": "much"}}}),
        json.dumps({"schema_version": 2, "gpus": {"GPU-1": 700.0}}),
        json.dumps({"schema_version": 3, "gpus": {}}),
    ],
)
def test_what_is_no_record_is_refused_and_kept(file, text):
    file.path.write_text(text)
    with pytest.raises(ActuationError, match=r"limits\.json: not a record .*nvidia-smi -pl"):
        file.read()
    assert file.path.read_text() == text


OTHER = """
import sys
from pathlib import Path
from serve_app.actuators.limit_record import RecordFile
try:
    RecordFile(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
else:
    print("locked")
"""


def ask_another_process(path):
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_one_process_holds_it_at_a_time(tmp_path):
    file = RecordFile(tmp_path / "limits.json")
    answer = ask_another_process(file.path)
    assert answer.startswith("ActuationRefused")
    assert f"process {os.getpid()} sets power limits here" in answer
    file.close()
    assert ask_another_process(file.path) == "locked"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ActuationRefused, match="so none is changed"):
        RecordFile(tmp_path / "file" / "limits.json")
