"""Length distributions from published figures."""

from __future__ import annotations

import numpy as np
import pytest

from policies.core.errors import ConfigError
from policies.sim.arrivals import LengthCdf
from policies.sim.length_fits import lognormal, mean_tokens, through_quantiles

CHAT = {0.5: 1020, 0.9: 2735, 0.99: 4142}


def test_samples_have_the_published_quantiles():
    lengths = through_quantiles(CHAT).sample(np.random.default_rng(0), 400_000)
    for share, tokens in CHAT.items():
        assert np.quantile(lengths, share) == pytest.approx(tokens, rel=0.01)
    assert lengths.min() >= 1
    assert 4142 < lengths.max() < 20_000


def test_two_quantiles_are_a_log_normal():
    cdf = through_quantiles({0.5: 400, 0.8413447: 400 * np.e**0.7})
    logs = np.log(cdf.sample(np.random.default_rng(0), 200_000))
    assert logs.mean() == pytest.approx(np.log(400), abs=0.01)
    assert logs.std() == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(("mean", "median"), [(1632, 1020), (106, 60), (500, 500)])
def test_a_log_normal_has_its_mean_and_median(mean, median):
    cdf = lognormal(mean, median)
    lengths = cdf.sample(np.random.default_rng(1), 500_000)
    assert lengths.mean() == pytest.approx(mean, rel=0.01)
    assert np.median(lengths) == pytest.approx(median, rel=0.01)
    assert mean_tokens(cdf) == pytest.approx(lengths.mean(), rel=0.01)


def test_ends_are_kept_and_lengths_below_one_count_as_one():
    cdf = through_quantiles({0.17: 0, 0.5: 5.5, 0.99: 246, 1: 471})
    lengths = cdf.sample(np.random.default_rng(2), 100_000)
    assert lengths.min() == 1
    assert lengths.max() <= 471
    assert np.mean(lengths == 1) > 0.17
    assert mean_tokens(LengthCdf.uniform(10, 20)) == pytest.approx(15)


@pytest.mark.parametrize(
    "quantiles", [{}, {0.5: 10}, {0.5: 10, 0.9: 5}, {0.5: 10, 50: 20}, {0.5: 1, 0.9: float("inf")}]
)
def test_bad_quantiles_are_refused(quantiles):
    with pytest.raises(ConfigError, match="length quantiles: expected"):
        through_quantiles(quantiles)


def test_a_mean_below_the_median_is_refused():
    with pytest.raises(ConfigError, match="mean 5 and median 9: expected 1 ≤ median ≤ mean"):
        lognormal(5, 9)
