"""Continuous batching, against a cache that is a list of token numbers per slot."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.profiler.batching import Batch, Sequence

requests = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=14)


class Slots:
    """Keeps, per slot, which sequence's tokens it holds."""

    def __init__(self):
        self.content = {}

    def compute(self, plan):
        for slot, sequence in enumerate(plan.decoding):
            assert sequence.slot == slot
            self._write(sequence, sequence.computed_tokens, 1)
        if plan.prompt is not None:
            assert plan.prompt.slot not in range(len(plan.decoding))
            self._write(plan.prompt, plan.prompt_start, plan.prompt_tokens)

    def _write(self, sequence, start, count):
        held = self.content.setdefault(sequence.slot, {})
        for position in range(start, start + count):
            held[position] = sequence

    def move(self, move):
        source = self.content[move.source]
        for position in range(move.tokens):
            if position in source:
                self.content.setdefault(move.target, {})[position] = source[position]

    def holds(self, sequence):
        held = self.content[sequence.slot]
        return all(held[position] is sequence for position in range(sequence.computed_tokens))


@given(requests, st.integers(1, 5), st.integers(0, 30))
def test_every_request_gets_its_tokens_in_a_slot_of_its_own(sizes, max_num_seqs, spare):
    budget = max_num_seqs + 1 + spare
    batch, slots = Batch(max_num_seqs, budget), Slots()
    queued = [Sequence(prompt_tokens=p, output_tokens=o) for p, o in sizes]
    for sequence in queued:
        batch.add(sequence)
    ended = []
    while (plan := batch.plan()) is not None:
        running = [*plan.decoding, *([plan.prompt] if plan.prompt else [])]
        assert 1 <= len(running) <= max_num_seqs
        assert len(plan.decoding) + plan.prompt_tokens <= budget
        assert (plan.prompt is None) == (plan.prompt_tokens == 0)
        slots.compute(plan)
        gone, moves = batch.complete(plan)
        for move in moves:
            slots.move(move)
        for sequence in running:
            assert sequence in gone or slots.holds(sequence)
        ended += gone
    assert not batch.unfinished
    assert set(map(id, ended)) == set(map(id, queued))
    for sequence in queued:
        assert sequence.sampled_tokens == sequence.output_tokens
        # The last sampled token is never computed.
        assert sequence.computed_tokens == sequence.prompt_tokens + sequence.output_tokens - 1
        assert sequence.slot is None


@given(requests, st.integers(1, 5))
def test_prompts_are_computed_in_order_and_decoding_never_waits(sizes, max_num_seqs):
    batch = Batch(max_num_seqs, max_num_seqs + 4)
    queued = [Sequence(prompt_tokens=p, output_tokens=o) for p, o in sizes]
    for sequence in queued:
        batch.add(sequence)
    begun, decoding = [], set()
    while (plan := batch.plan()) is not None:
        assert decoding == set(plan.decoding)
        if plan.prompt is not None and plan.prompt_start == 0:
            begun.append(plan.prompt)
        gone, _ = batch.complete(plan)
        decoding |= {plan.prompt} if plan.prompt is not None and plan.ends_prompt else set()
        decoding -= set(gone)
    assert begun == queued


def test_a_batch_that_is_cleared_has_nothing_to_do():
    batch = Batch(2, 8)
    for _ in range(3):
        batch.add(Sequence(prompt_tokens=4, output_tokens=4))
    batch.complete(batch.plan())
    assert batch.unfinished
    batch.clear()
    assert not batch.unfinished
    assert batch.plan() is None
