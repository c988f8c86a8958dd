"""The page's hour: rates over the minute before, by hand."""

from serve_app.history import EVERY_S, History, Sample, with_rates


def sample(time_s, joules, requests, met=None, **more):
    values = {
        "replicas": 1, "requested_replicas": None, "running": 0.0, "waiting": 0.0,
        "batch_cap": None, "limit_watts": None,
    }  # fmt: skip
    return Sample(
        time_utc_s=time_s, joules=joules, requests=requests, judged=requests,
        met=requests if met is None else met, **{**values, **more},
    )  # fmt: skip


def test_rates_are_those_of_the_minute_before():
    rows = with_rates([sample(5.0 * k, 50.0 * k, 10.0 * k, met=9.0 * k) for k in range(30)])
    assert (rows[0]["joules_per_request"], rows[0]["requests_per_s"]) == (None, None)
    assert rows[1]["joules_per_request"] == 5.0
    for row in rows[1:]:
        assert row["requests_per_s"] == 2.0
        assert row["attainment_ratio"] == 0.9
    # A burst is seen for a minute and then forgotten.
    burst = [sample(0.0, 0.0, 0.0), sample(5.0, 100.0, 10.0)]
    calm = [sample(5.0 * k, 100.0, 10.0) for k in range(2, 20)]
    told = [row["joules_per_request"] for row in with_rates(burst + calm)]
    assert told[:2] == [None, 10.0]
    assert told[11] == 10.0
    assert told[-1] is None


def test_what_is_not_metered_is_not_known_and_counters_that_begin_anew_are_no_loss():
    rows = with_rates([sample(0.0, None, 0.0), sample(5.0, None, 4.0)])
    assert rows[1]["joules_per_request"] is None
    assert rows[1]["attainment_ratio"] == 1.0
    rows = with_rates([sample(0.0, 90.0, 50.0), sample(5.0, 1.0, 1.0), sample(10.0, 3.0, 2.0)])
    assert (rows[1]["requests_per_s"], rows[2]["joules_per_request"]) == (None, 2.0)


def test_an_hour_is_kept_and_no_more():
    history = History()
    for k in range(1000):
        now_s = EVERY_S * k
        assert history.due("d", now_s)
        history.add("d", sample(now_s, now_s, float(k)), now_s)
        assert not history.due("d", now_s + 0.9 * EVERY_S)
    rows = history.rows()["d"]
    assert len(rows) == 720
    assert rows[-1]["time_utc_s"] - rows[0]["time_utc_s"] == 719 * EVERY_S
