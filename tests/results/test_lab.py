"""What a setting is verified by: every seed of a cell; by one seed only where a row has only one."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from serve_app.results.contest import judged
from serve_app.results.lab import Lab
from serve_app.simulator.specs import parse_spec

BY_SEED = [(100.0, 0.995), (110.0, 0.992), (120.0, 0.971)]  # the third draw has a longer burst


class SeededLab(Lab):
    def __init__(self):
        pass

    def full(self, bench, spec):
        joules, attained = BY_SEED[bench.seed]
        return {"joules_per_request": joules, "slo_attainment_ratio": attained}


@dataclass(frozen=True)
class SeededBench:
    cell: SimpleNamespace
    seed: int = 0


def bench(seeds, seed=0):
    return SeededBench(cell=SimpleNamespace(seeds=seeds, sampled=False), seed=seed)


@pytest.mark.parametrize(
    ("seeds", "joules", "attained"), [(1, 100.0, 0.995), (2, 105.0, 0.9935), (3, 110.0, 0.986)]
)
def test_what_is_verified_is_the_mean_over_the_seeds(seeds, joules, attained):
    found = SeededLab().outcome(bench(seeds), parse_spec("static"))
    assert found.joules_per_request == pytest.approx(joules)
    assert found.attained == pytest.approx(attained)


def test_a_peer_is_judged_at_the_one_seed_of_its_row():
    assert judged(SeededLab(), bench(3), parse_spec("wva")).attained == 0.995
