"""The parts of a run: event stream, prompts, options, schedule, and sums over samples."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from policies.core.errors import ConfigError
from policies.core.types import SLO
from policies.sim.trace import BurstShape
from serve_app.bench.fleet import FleetSample, replica_seconds
from serve_app.bench.options import BenchOptions, parse_burst
from serve_app.bench.prompts import PromptSource, prompt_source
from serve_app.bench.records import RequestRecord, ResponseEnergy
from serve_app.bench.schedule import build_schedule, parse_lengths
from serve_app.bench.sse import Comment, Data, SseParser

STREAM = (
    b': energy {"joules": 1}\n\ndata: {"a": 1}\n\nevent: x\r\ndata: two\r\ndata:  lines\r\n\r\n'
    b"data: \xc3\xa9\n\nid: 7\n\ndata: [DONE]\n\ndata: cut off"
)
EVENTS = [
    Comment('energy {"joules": 1}'),
    Data('{"a": 1}'),
    Data("two\n lines"),
    Data("é"),
    Data("[DONE]"),
]


@given(st.lists(st.integers(min_value=1, max_value=len(STREAM)), max_size=12))
def test_events_do_not_depend_on_where_the_chunks_are_cut(cuts):
    parser = SseParser()
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    pieces = [STREAM[begin:end] for begin, end in pairwise(edges)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def word_tokenizer(words, file=None):
    """A tokenizer in the manner of byte-level BPE: a word is one token, with and without a space."""
    vocabulary = {"[UNK]": 0, "\u0120": 1}
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
        vocabulary.setdefault(f"\u0120{word}", len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\S+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if file is not None:
        tokenizer.save(str(file))
    return tokenizer


WORDS = ["abc" + chr(97 + i) + chr(97 + j) for i in range(20) for j in range(20)]


@given(st.integers(min_value=1, max_value=600), st.integers(min_value=0, max_value=10**6))
def test_a_prompt_has_exactly_the_tokens_wanted(tokens, index):
    tokenizer = word_tokenizer(WORDS)
    source = PromptSource(tokenizer, "", seed=1)
    text = source.text(index, tokens)
    assert source.exact
    assert len(tokenizer.encode(text, add_special_tokens=False)) == tokens
    assert text == PromptSource(tokenizer, "", seed=1).text(index, tokens)


def test_words_that_the_tokenizer_splits_after_all_are_not_used():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.normalizer = normalizers.Replace("abcd", "abc d")
    source = PromptSource(tokenizer, "", seed=1)
    assert len(source._words) == len(WORDS) - 20
    for index in range(20):
        assert len(tokenizer.encode(source.text(index, 50), add_special_tokens=False)) == 50


def test_prompts_differ_from_their_first_words_on():
    source = PromptSource(word_tokenizer(WORDS), "", seed=1)
    starts = Counter(tuple(source.text(index, 16).split()[:3]) for index in range(500))
    assert starts.most_common(1)[0][1] == 1
    other = PromptSource(word_tokenizer(WORDS), "", seed=2)
    assert other.text(0, 16) != source.text(0, 16)


def test_the_tokenizer_is_the_one_named_or_the_models_own(tmp_path):
    word_tokenizer(WORDS, tmp_path / "tokenizer.json")
    for source in (
        prompt_source("any", tmp_path, 0),
        prompt_source("any", tmp_path / "tokenizer.json", 0),
        prompt_source(str(tmp_path), None, 0),
    ):
        assert source.exact
        assert str(tmp_path) in source.note


def test_without_a_tokenizer_words_are_counted_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("JOULESERVE_CACHE", str(tmp_path))  # the default model is not prepared here
    for model in ("org/unknown", "smollm2-135m-instruct"):
        source = prompt_source(model, None, 0)
        assert not source.exact
        assert f"no tokenizer for {model}" in source.note
        assert "count words" in source.note
        assert len(source.text(0, 50).split()) == 50


def test_a_vocabulary_without_whole_words_falls_back_to_words():
    source = PromptSource(word_tokenizer(WORDS[:5]), "tokenizer x", seed=0)
    assert not source.exact
    assert "tokenizer x has too few whole-word tokens" in source.note


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match="--tokenizer"):
        prompt_source("any", tmp_path, 0)


def test_bursts_are_read():
    assert parse_burst("1:8:60") == BurstShape(base_rate_per_s=1, peak_rate_per_s=8, period_s=60)
    assert parse_burst("0:8:60:0.25").duty_ratio == 0.25


@pytest.mark.parametrize("text", ["", "1", "1:2", "a:b:c", "1:2:3:0.5:9", "8:1:60", "1:8:60:1.5"])
def test_bad_bursts_are_refused_with_the_form(text):
    with pytest.raises(ConfigError, match=r"--burst .*BASE:PEAK:PERIOD"):
        parse_burst(text)


@pytest.mark.parametrize("text", ["0", "-1", "x", "5:4", "0:4", ":", "1.5", "no/such/file.csv"])
def test_bad_lengths_are_refused(text):
    with pytest.raises(ConfigError, match="expected"):
        parse_lengths(text, "--prompt-tokens")


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "localhost:8000"},
        {"duration_s": 0},
        {"timeout_s": -1},
        {"slo": SLO(ttft_s=0)},
        {"max_requests": 0},
        {"seed": -1},
        {"trace": "x", "burst": parse_burst("1:2:3")},
    ],
)
def test_bad_options_are_refused(settings):
    with pytest.raises(ConfigError, match=r"--.*expected"):
        BenchOptions(**settings)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_base_url_is_the_same_however_it_is_written(url):
    assert BenchOptions(url=url).base_url == "http://h:1"


def lengths_file(tmp_path):
    path = tmp_path / "cdf.csv"
    path.write_text("cdf_pct,tokens\n50,10\n100,20\n")
    return str(path)


def test_generated_loads_take_their_lengths_from_numbers_ranges_and_files(tmp_path):
    rows = build_schedule(
        BenchOptions(
            rate_per_s=50, duration_s=10, prompt_tokens="5:9", output_tokens=lengths_file(tmp_path)
        )
    )
    assert 400 < len(rows) < 600
    assert {row.prompt_tokens for row in rows} == {5, 6, 7, 8, 9}
    assert {row.output_tokens for row in rows} == set(range(10, 21))
    burst = BenchOptions(burst=parse_burst("0:50:10:0.2"), duration_s=10)
    assert all(4 <= row.arrival_s < 6 for row in build_schedule(burst))


def test_traces_are_scaled_then_cut_by_time_and_number(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [{"timestamp": t, "input_length": 3, "output_length": 4} for t in (0, 1000, 2000, 3000)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    whole = build_schedule(BenchOptions(trace=path))
    assert [row.arrival_s for row in whole] == [0, 1, 2, 3]
    fast = build_schedule(BenchOptions(trace=path, time_scale=0.5, duration_s=1.2))
    assert [row.arrival_s for row in fast] == [0, 0.5, 1]
    assert len(build_schedule(BenchOptions(trace=path, max_requests=2))) == 2


def test_a_rate_curve_is_a_load_with_the_lengths_of_the_options(tmp_path):
    path = tmp_path / "rate.csv"
    path.write_text("minute,rps\n0,0\n1,20\n")
    rows = build_schedule(BenchOptions(trace=path, prompt_tokens="7", output_tokens="8"))
    assert all(60 <= row.arrival_s < 120 for row in rows)
    assert {(row.prompt_tokens, row.output_tokens) for row in rows} == {(7, 8)}
    with pytest.raises(ConfigError, match="no request"):
        build_schedule(BenchOptions(trace=path, duration_s=30))
    with pytest.raises(ConfigError, match="--time-scale"):
        build_schedule(BenchOptions(trace=path, time_scale=2))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b""])
def test_a_trace_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"t\.csv"):
        build_schedule(BenchOptions(trace=path))


def sample(time_s, num_replicas):
    content = {"replicas": [], "num_replicas": num_replicas}
    return FleetSample.from_api(content, time_s)


def test_replica_seconds_hold_each_count_to_the_next_sample():
    samples = [sample(0.0, 1), sample(2.0, 2), sample(5.0, 1), sample(12.0, 3)]
    assert replica_seconds(samples, 10.0) == 2 * 1 + 3 * 2 + 5 * 1
    assert replica_seconds(samples[:1], 10.0) == 10.0


@given(st.one_of(st.none(), st.booleans(), st.text(), st.just(float("nan"))))
def test_joules_that_are_no_number_are_unavailable(joules):
    energy = ResponseEnergy.from_api({"joules": joules, "source": "counter"})
    assert energy.joules is None
    assert energy.source == "unavailable"


def test_a_response_of_one_token_is_judged_by_its_first():
    record = RequestRecord(
        index=0, scheduled_s=0, sent_s=0, wanted_prompt_tokens=1, wanted_output_tokens=1, ttft_s=0.5
    )
    assert record.meets(SLO(ttft_s=0.5, tpot_s=0.001))
    assert not record.meets(SLO(ttft_s=0.4, tpot_s=0.001))
