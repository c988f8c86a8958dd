"""The ratio of metering on to off, from slices in turn."""

import pytest

from serve_app.compare.metering_cost import Slice, _turns, ratios


def test_a_drift_of_the_machine_counts_for_both():
    """The machine slows by 2 % per slice; metering costs 1 %."""
    slices = [
        Slice(
            metered=on,
            seconds=4.0,
            tokens=round(1e6 * 0.98**i * (0.99 if on else 1.0)),
            itl_s=0.05 / 0.98**i,
        )
        for i, on in enumerate(_turns(10))
    ]
    found = ratios(slices, "tokens_per_s")
    assert found["pairs"] == 20
    assert found["median"] == pytest.approx(0.99, abs=0.001)
    assert found["low"] < 0.99 < found["high"]
    assert ratios(slices, "itl_s")["median"] == pytest.approx(1.0, abs=0.001)
