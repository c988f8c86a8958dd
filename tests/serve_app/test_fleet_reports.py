"""What replicas report and the controller reads: the same, in one number that Ray carries."""

import math
from dataclasses import replace

from fleet_cases import but, context, replica_id, stats
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import ReplicaMetricReport, TimeStampedValue
from ray.serve._private.utils import compress_metric_report, decompress_metric_report

from policies.core.types import ControlSettings, ReplicaObservation
from policies.model.bias import CorrectionSettings
from policies.model.online import Correction, fleet_correction
from serve_app.fleet_reports import latest_reports
from serve_app.replica_report import KEY, VALUES, report


def sent_and_read(*reports):
    return latest_reports(context(reports, age_s=0.0)).observations()


def test_a_report_carries_every_field_and_what_is_not_known():
    given = ReplicaObservation(
        replica="r7", time_s=3.0, num_running=2.0, num_waiting=1.0, arrival_rate_per_s=0.5,
        prompt_tokens=10.0, output_tokens=20.0, ttft_s=0.1, tpot_s=0.02, draw_watts=30.0,
        max_num_active_seqs=32, power_limit_watts=300.0, pack_seqs=9, pack_tokens=700,
        waiting_prompt_tokens=12.0, recent_rate_per_s=0.8, num_judged=100.0, num_late=3.0,
        num_slow=0.0, margin=-1.0, pace_margin=-0.25, prompt_bins=tuple(map(float, range(12))),
        output_bins=tuple(map(float, range(1, 13))),
    )  # fmt: skip
    sent = report(given, ControlSettings(), max_num_batched_tokens=4096)
    (again,) = sent_and_read(sent)
    assert again == replace(given, replica="r0", time_s=1000.0)
    found = latest_reports(context([sent, stats()]))
    assert found.known("max_num_batched_tokens") == [4096.0]
    bare = ReplicaObservation(
        replica="r", time_s=0.0, num_running=0.0, num_waiting=0.0, arrival_rate_per_s=0.0
    )
    (again,) = sent_and_read(report(bare, ControlSettings()))
    assert again == replace(bare, replica="r0", time_s=1000.0)
    assert [type(one) for one in (again.ttft_s, again.pack_seqs, again.prompt_bins)] == (
        [type(None)] * 3
    )


def test_observations_need_no_constructor():
    assert not hasattr(ReplicaObservation, "__post_init__")  # `_by_column` would pass it over


def test_the_time_of_a_report_is_that_of_its_newest_value():
    seen = context([stats()])
    (series,) = seen.raw_metrics[KEY].values()
    series.append(TimeStampedValue(1003.0, stats(rate=3.0)[KEY]))
    found = latest_reports(seen)
    assert (found.times_s, found.known("arrival_rate_per_s")) == ((1003.0,), [3.0])


def test_a_report_tells_what_the_steps_say():
    seen = ReplicaObservation(
        replica="r", time_s=0.0, num_running=0.0, num_waiting=0.0, arrival_rate_per_s=0.0
    )
    learned = Correction(step_time_ratio=1.2, at_bound=True)
    sent = [report(seen, ControlSettings(), learned), report(seen, ControlSettings())]
    found = latest_reports(context(sent)).correction(1000.0, 5.0, CorrectionSettings())
    assert found == learned
    assert latest_reports(context(sent)).correction(1010.0, 5.0, CorrectionSettings()) == (
        Correction()
    )


ratios = st.one_of(st.none(), st.floats(0.01, 100.0))
replicas_learned = st.builds(
    Correction, step_time_ratio=ratios, energy_ratio=ratios, at_bound=st.booleans()
)


@given(st.lists(replicas_learned, max_size=9))
def test_reports_are_pooled_as_corrections_are(each):
    """The table's way and `fleet_correction` come to the same."""
    seen = ReplicaObservation("r", 0.0, 0.0, 0.0, 0.0)
    sent = [report(seen, ControlSettings(), one) for one in each]
    found = latest_reports(context(sent)).correction(1000.0, 5.0, CorrectionSettings())
    assert found == fleet_correction(each, CorrectionSettings())


def test_incomplete_reports_are_left_out():
    lacks = but(stats(), slo_ttft_s=math.nan)
    assert latest_reports(context([lacks, stats()])).names == ("r1",)
    assert not latest_reports(context([lacks]))
    assert latest_reports(context([])).names == ()


def test_replicas_of_another_release_are_left_out_while_they_are_replaced():
    ours = stats()[KEY]
    older = {"arrival_rate_per_s": 1.0, "num_running": 2.0}
    newer = {KEY: ours + (1 << (8 * 8 * len(VALUES)))}  # of the same length, under another mark
    longer = {KEY: ours << 64}
    seen = latest_reports(context([older, newer, longer, {KEY: 1.5}, {KEY: -ours}, stats(4.0)]))
    assert (seen.names, seen.known("arrival_rate_per_s")) == (("r5",), [4.0])


def test_reports_in_any_order_are_put_together_by_replica():
    seen = context([stats(rate=float(k)) for k in range(12)])
    series = seen.raw_metrics[KEY]
    for one in list(series)[3:7]:
        series[one] = series.pop(one)  # to the end
    found = latest_reports(seen)
    assert list(found.names) == sorted(f"r{k}" for k in range(12))
    assert [f"r{rate:.0f}" for rate in found.known("arrival_rate_per_s")] == list(found.names)
    seen.running_replicas.pop()  # r11
    assert len(latest_reports(seen)) == 11


def test_a_report_is_one_plain_number_that_rays_own_transport_carries():
    sent = stats()
    assert all(type(value) is int for value in sent.values())
    metrics = {name: [TimeStampedValue(1.0, value)] for name, value in sent.items()}
    whole = ReplicaMetricReport(replica_id=replica_id(0), metrics=metrics, timestamp=1.0)
    assert decompress_metric_report(compress_metric_report(whole)) == whole
    (again,) = decompress_metric_report(compress_metric_report(whole)).metrics[KEY]
    assert again.value == sent[KEY]
