"""The request log on a real disk: bounds, kills, full disks, deleted folders, damaged files."""

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import log_rows
import pytest
from log_rows import ROOMY, row

from policies.core.errors import ConfigError
from serve_app.request_log.files import Bounds, LogFile, compress, prune
from serve_app.request_log.reader import ReadCounts, read_rows
from serve_app.request_log.row import ENCODER
from serve_app.request_log.writer import RequestLog

LINE = len(ENCODER.encode(row(1000))) + 1


def bounds(max_file=2**16, files=6, age_s=1e9):
    return Bounds(max_bytes=files * max_file, max_file_bytes=max_file, max_age_s=age_s)


def numbers(folder, counts=None):
    return [int(r.response_id.split("-")[1]) for r in read_rows(folder, counts or ReadCounts())]


def eventually(check, timeout_s=5.0):
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.005)


@pytest.fixture
def opened():
    """Opens logs that flush quickly, and closes them."""
    logs = []

    def opener(folder, limit=ROOMY, **options):
        log = RequestLog(LogFile(folder, "llm.d.r", limit), **{"flush_s": 0.01, **options})
        logs.append(log)
        return log

    yield opener
    for log in logs:
        log.close()


def test_what_is_written_is_read_back_whole(tmp_path, opened):
    rows = [row(i, tenant="Zoë", tenant_kind="user", joules=0.1 + i) for i in range(3)]
    log = opened(tmp_path / "new" / "folder")
    for r in rows:
        log.write(r)
    log.close()
    assert list(read_rows(tmp_path / "new" / "folder", ReadCounts())) == rows
    assert (log.counts.written, log.counts.dropped, log.counts.errors) == (3, 0, 0)


def test_writing_returns_at_once_while_the_disk_hangs(tmp_path, opened, monkeypatch):
    hangs = threading.Event()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (hangs.wait(10), real(fd, data))[1])
    log = opened(tmp_path, queue_rows=50)
    log.write(row(0))
    time.sleep(0.05)  # its thread is in write(2) now
    begin_s = time.perf_counter()
    for i in range(1, 100):
        log.write(row(i))
    assert time.perf_counter() - begin_s < 0.05
    assert log.counts.dropped == 50
    hangs.set()
    log.close()
    assert numbers(tmp_path) == list(range(50))


# ---- bounds


def test_a_folder_never_outgrows_its_bound(tmp_path, opened):
    limit = bounds(files=5)
    (tmp_path / "mine.jsonl").write_text("not a request log\n")
    total = 60 * limit.max_file_bytes // LINE // 4
    log = opened(tmp_path, limit)
    biggest = 0
    for i in range(total):
        log.write(row(i, tenant=os.urandom(150).hex(), tenant_kind="user"))  # compresses badly
        if i % 20 == 0:
            time.sleep(0.001)
            biggest = max(biggest, used(tmp_path))
    log.close()
    assert used(tmp_path) <= limit.max_bytes
    assert biggest <= limit.max_bytes
    assert log.counts.written == total
    kept = numbers(tmp_path)
    assert kept == sorted(kept)
    assert kept[-1] == total - 1
    assert kept == list(range(kept[0], total)), "the oldest are gone, nothing else"
    assert kept[0] > 0
    assert (tmp_path / "mine.jsonl").exists(), "other people's files stay"


def used(folder):
    total = 0
    for path in folder.iterdir():
        if path.name.startswith("llm."):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


def test_rows_too_old_are_deleted_but_never_a_living_writers(tmp_path, opened):
    old = LogFile(tmp_path, "dead", bounds())
    old.append(ENCODER.encode(row(1)) + b"\n")
    old.close()
    live = LogFile(tmp_path, "alive", bounds())
    live.append(ENCODER.encode(row(2)) + b"\n")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 100, time.time() - 100))
    prune(tmp_path, bounds(age_s=1000))
    assert numbers(tmp_path) == [2, 1]
    prune(tmp_path, bounds(age_s=50))
    assert numbers(tmp_path) == [2]
    live.close()
    prune(tmp_path, bounds(age_s=50))
    assert not list(tmp_path.iterdir())


def test_a_full_file_is_closed_and_compressed(tmp_path):
    file = LogFile(tmp_path, "x", bounds(max_file=10 * LINE, files=100))
    lines = b"".join(ENCODER.encode(row(1000 + i)) + b"\n" for i in range(35))
    while lines:
        lines = lines[file.append(lines) :]
    file.close()
    assert numbers(tmp_path) == list(range(1000, 1035))
    closed = sorted(tmp_path.glob("*.gz"))
    assert len(closed) == 3
    assert all(path.stat().st_size < 10 * LINE / 4 for path in closed)
    assert len(gzip.decompress(closed[0].read_bytes())) == 10 * LINE


def test_a_segment_left_twice_by_a_kill_counts_once(tmp_path):
    segment = tmp_path / "x.20261121T140000Z-0.requests.jsonl"
    segment.write_bytes(ENCODER.encode(row(7)) + b"\n")
    content = segment.read_bytes()
    compress(segment)
    assert not segment.exists()
    segment.write_bytes(content)
    assert numbers(tmp_path) == [7]


# ---- kills and faults


@pytest.mark.slow
def test_a_kill_loses_at_most_the_last_second(tmp_path):
    program = [sys.executable, log_rows.__file__, str(tmp_path), "1000"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=environment) as victim:
        given = [line.split() for line in islice(victim.stdout, 1700)]
        victim.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        given += [line.split() for line in victim.stdout if line.endswith(b"\n")]
    given = [(float(s), int(n)) for s, n in (g for g in given if len(g) == 2)]
    counts = ReadCounts()
    kept = numbers(tmp_path, counts)
    assert kept == list(range(len(kept))), "nothing is missing in the middle"
    lost = [s for s, n in given if n >= len(kept)]
    assert all(killed_s - s < 1.0 for s in lost)
    assert len(kept) > 500
    assert counts.bad_rows == 0


def test_a_torn_line_is_counted_and_the_next_writer_goes_on(tmp_path, opened):
    file = LogFile(tmp_path, "llm.d.r", ROOMY)
    file.append(ENCODER.encode(row(0)) + b"\n" + ENCODER.encode(row(1)) + b"\n")
    file.close()
    with file.path.open("rb+") as torn:
        torn.truncate(file.path.stat().st_size - 40)
    counts = ReadCounts()
    assert numbers(tmp_path, counts) == [0]
    assert (counts.torn_rows, counts.bad_rows) == (1, 0)
    log = opened(tmp_path)
    log.write(row(2))
    log.close()
    assert numbers(tmp_path) == [0, 2]


def test_a_full_disk_loses_no_row_that_fits_the_queue(tmp_path, opened, caplog):
    (tmp_path / "llm.d.r.requests.jsonl").symlink_to("/dev/full")
    log = opened(tmp_path, queue_rows=10)
    for i in range(15):
        log.write(row(i))
    eventually(lambda: log.counts.errors >= 3)
    assert log.counts.written == 0
    (tmp_path / "llm.d.r.requests.jsonl").unlink()  # there is room again
    eventually(lambda: log.counts.written == 10)
    log.write(row(15))
    log.close()
    assert numbers(tmp_path) == [*range(10), 15]
    assert log.counts.dropped == 5
    said = [r.getMessage() for r in caplog.records if "request log" in r.getMessage()]
    assert len(said) == 2, "once when it begins, once when it is over"
    assert "No space left on device" in said[0]
    assert "5 rows dropped" in said[1]


FULL_DISK = """
import resource, sys, time
from log_rows import ROOMY, row
from serve_app.request_log.files import LogFile
from serve_app.request_log.writer import RequestLog
from pathlib import Path
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))   # the fourth row does not fit whole
log = RequestLog(LogFile(Path(sys.argv[1]), "x", ROOMY), flush_s=0.01)
for i in range(10):
    log.write(row(i))
while log.counts.errors < 3:
    time.sleep(0.01)
assert Path(sys.argv[1], "x.requests.jsonl").stat().st_size == 0, "a partly written batch is cut off"
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.close()
assert log.counts.written == 10, log.counts
"""


def test_a_disk_that_fills_in_the_middle_of_a_batch_leaves_no_torn_line(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    counts = ReadCounts()
    assert numbers(tmp_path, counts) == list(range(10))
    assert (counts.torn_rows, counts.bad_rows) == (0, 0)


def test_a_folder_that_cannot_be_made_or_goes_away_comes_back(tmp_path, opened):
    folder = tmp_path / "logs"
    folder.write_text("a file is in the way")
    log = opened(folder)
    log.write(row(0))
    eventually(lambda: log.counts.errors >= 2)
    folder.unlink()
    eventually(lambda: log.counts.written == 1)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    log.write(row(1))
    log.close()
    assert numbers(folder) == [1]
    assert log.counts.written == 2


def test_a_row_that_json_cannot_hold_takes_no_other_with_it(tmp_path, opened):
    log = opened(tmp_path, flush_s=0.2)
    log.write(row(0))
    log.write(row(1, tenant="\ud800", tenant_kind="user"))
    log.write(row(2))
    log.close()
    assert numbers(tmp_path) == [0, 2]
    assert log.counts.dropped == 1


def test_a_damaged_file_gives_what_is_before_the_damage(tmp_path):
    for name, first in (("a", 0), ("b", 1000)):
        segment = tmp_path / f"{name}.requests.jsonl"
        lines = (ENCODER.encode(row(first + i, tenant=os.urandom(40).hex())) for i in range(800))
        segment.write_bytes(b"".join(line + b"\n" for line in lines))
        compress(segment)
    cut = tmp_path / "a.requests.jsonl.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "c.requests.jsonl").write_bytes(
        b'{"schema": 2, "new": 1}\n{"joules": "many"}\n\xff\n' + ENCODER.encode(row(5000)) + b"\n"
    )
    counts = ReadCounts()
    found = numbers(tmp_path, counts)
    assert 0 < sum(n < 1000 for n in found) < 800
    assert sum(1000 <= n < 1800 for n in found) == 800
    assert found[-1] == 5000
    assert list(counts.bad_files) == ["a.requests.jsonl.gz"]
    assert (counts.newer_rows, counts.bad_rows) == (1, 2)
    assert counts.first_fault.startswith("c.requests.jsonl:2: ")


@pytest.mark.parametrize(
    ("name", "line"),
    [("gone", "no such folder"), ("file", "not a folder"), ("empty", "holds no request log")],
)
def test_a_folder_without_a_log_is_an_error_that_says_why(tmp_path, name, line):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=line):
        list(read_rows(tmp_path / name, ReadCounts()))
