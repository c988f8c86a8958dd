"""A meter that goes away in the middle of the work: nobody is charged what it did not show."""

import pytest

from policies.core.attribution import StepShare
from policies.core.energy import EnergyBooks


def step(books, start_s, end_s, request_id):
    share = StepShare(request_id=request_id, prefill_tokens=0, decode_tokens=1, context_tokens=9)
    books.begin_step(start_s, (share,))
    books.end_step(end_s)


def test_a_request_that_leaves_between_readings_is_not_paid_from_a_meter_that_is_gone():
    books = EnergyBooks(0.0)
    step(books, 0.0, 1.0, "before")
    books.close_window(1.0, {"gpu": 300.0, "cpu": 4.0}, {})
    assert books.settle("before", 1.0).joules_by_kind == {"gpu": 300.0, "cpu": 4.0}

    step(books, 1.0, 2.0, "during")
    books.close_window(2.0, {"gpu": None, "cpu": 4.0}, {}, coverage_ratio=0.5)
    step(books, 2.0, 2.5, "after")  # settled before the next reading: paid at the last rate
    assert books.settle("during", 2.5).joules_by_kind == {"cpu": 4.0}
    assert books.settle("after", 2.5).joules_by_kind == {"cpu": pytest.approx(2.0)}
    assert books.metered["gpu"] == books.settled["gpu"] == 300.0
    assert books.prepaid.get("gpu", 0.0) == 0.0

    books.close_window(3.0, {"gpu": 100.0, "cpu": 4.0}, {})  # it is back
    step(books, 3.0, 3.5, "again")
    assert books.settle("again", 3.5).joules_by_kind["gpu"] == 100.0  # at 100 J per 0.5 s of work
    assert max(map(abs, books.residual_joules().values())) < 1e-9
