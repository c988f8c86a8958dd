"""What a setting is verified by: every seed of a cell, or those that peers are played on."""

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


def bench(seeds, peer_seeds=None):
    cell = SimpleNamespace(seeds=seeds, peer_seeds=peer_seeds or seeds, sampled=False)
    return SeededBench(cell=cell)


@pytest.mark.parametrize(
    ("seeds", "joules", "attained"), [(1, 100.0, 0.995), (2, 105.0, 0.9935), (3, 110.0, 0.986)]
)
def test_what_is_verified_is_the_mean_over_the_seeds(seeds, joules, attained):
    found = SeededLab().outcome(bench(seeds), parse_spec("static"))
    assert found.joules_per_request == pytest.approx(joules)
    assert found.attained == pytest.approx(attained)


@pytest.mark.parametrize(("peer_seeds", "attained"), [(None, 0.986), (1, 0.995)])
def test_a_peer_is_judged_at_the_seeds_of_its_rows(peer_seeds, attained):
    found = judged(SeededLab(), bench(3, peer_seeds), parse_spec("wva"))
    assert found.attained == pytest.approx(attained)
