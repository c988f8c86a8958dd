"""The ledger's book: what came of each decision, in sums done by hand."""

from recorded import FLEET, PROFILES, records, seen

from serve_app.decisions.book import Account, DecisionBook, outcome
from serve_app.decisions.log import read_decisions
from serve_app.decisions.settings import DecisionLogSettings

OFF = DecisionLogSettings(enabled=False)


def account(time_s, joules, requests, met):
    return Account(time_s=time_s, joules=joules, requests=requests, judged=requests, met=met)


def test_an_outcome_is_the_difference_of_two_accounts():
    came = outcome(account(10.0, 100.0, 5.0, 5.0), account(40.0, 400.0, 25.0, 24.0))
    assert came == {
        "for_s": 30.0,
        "joules": 300.0,
        "requests": 20.0,
        "joules_per_request": 15.0,
        "attainment_ratio": 19.0 / 20.0,
    }
    nobody = outcome(account(10.0, 100.0, 5.0, 5.0), account(40.0, 160.0, 5.0, 5.0))
    assert (nobody["joules_per_request"], nobody["attainment_ratio"]) == (None, None)
    unmetered = outcome(account(0.0, None, 0.0, 0.0), account(9.0, None, 3.0, 3.0))
    assert (unmetered["joules"], unmetered["joules_per_request"]) == (None, None)
    assert outcome(None, account(1.0, 1.0, 1.0, 1.0)) is None
    assert outcome(account(0.0, 9.0, 9.0, 9.0), account(1.0, 1.0, 1.0, 1.0)) is None  # began anew


def test_each_decision_gets_what_came_of_it_until_the_next_of_its_owner():
    book, totals = DecisionBook(), {}
    replica = records([seen(10.0 * k, 20.0 * k) for k in range(1, 3)])
    (fleet,) = [one.model_copy(update={"id": "f0"}) for one in records([seen(5.0, 10.0)], FLEET)]

    def take(record, time_s, joules, requests):
        totals[record.key] = account(time_s, joules, requests, requests)
        book.take([record.model_dump_json()], PROFILES, OFF, totals.get)

    take(fleet, 5.0, 0.0, 0.0)
    take(replica[0], 10.0, 100.0, 10.0)
    take(replica[1], 20.0, 180.0, 20.0)
    totals[fleet.key] = account(25.0, 500.0, 50.0, 50.0)
    totals[replica[1].key] = account(25.0, 200.0, 25.0, 25.0)
    last, first, of_fleet = book.rows(10, totals.get)
    assert [last["id"], first["id"], of_fleet["id"]] == ["d1", "d0", "f0"]
    assert [row["in_force"] for row in (last, first, of_fleet)] == [True, False, True]
    assert first["outcome"]["joules_per_request"] == 8.0
    assert last["outcome"]["joules_per_request"] == 4.0
    assert of_fleet["outcome"]["requests"] == 50.0
    assert last["alternatives"][0]["joules_per_request"] > 0.0
    assert last["decision"] == replica[1].decision
    assert [row["id"] for row in book.rows(1, totals.get)] == ["d1"]
    told = book.records(2)
    assert [one["id"] for one in told["records"]] == ["d0", "d1"]
    assert told["profiles"] == PROFILES
    assert book.records(0) == {"records": [], "profiles": {}}


def test_a_line_that_is_no_record_is_counted_and_the_others_are_kept(tmp_path):
    book = DecisionBook("llm")
    (one,) = records([seen(1.0, 10.0)])
    settings = DecisionLogSettings(folder=str(tmp_path))
    book.take(["{}", one.model_dump_json()], PROFILES, settings, {}.get)
    assert book.refused == 1
    assert [row["id"] for row in book.rows(5, {}.get)] == ["d0"]
    assert read_decisions(tmp_path).records == [one]


def test_the_book_forgets_the_oldest():
    book = DecisionBook()
    (one,) = records([seen(1.0, 10.0)])
    line = one.model_dump_json()
    for number in range(600):
        book.take([line.replace('"d0"', f'"d{number}"')], {}, OFF, {}.get)
    rows = book.rows(10_000, {}.get)
    assert len(rows) == 512
    assert rows[0]["id"] == "d599"


def test_a_folder_that_cannot_be_made_costs_the_log_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    book = DecisionBook()
    (one,) = records([seen(1.0, 10.0)])
    settings = DecisionLogSettings(folder=str(tmp_path / "file" / "log"))
    book.take([one.model_dump_json()], PROFILES, settings, {}.get)
    assert len(book.rows(5, {}.get)) == 1
    assert "no decision log in" in caplog.text


def test_owners_that_come_and_go_do_not_fill_the_memory():
    book = DecisionBook()
    (one,) = records([seen(1.0, 10.0)])
    line = one.model_dump_json()
    for number in range(2100):
        book.take(
            [line.replace('"replica":"r0","policy"', f'"replica":"x{number}","policy"')],
            {},
            OFF,
            {}.get,
        )
    assert book.refused == 0
    assert len(book._open) == 2048
    assert next(reversed(book._open)) == (one.deployment, "x2099")
