from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvita.data.mix.mixture import select_samples, shuffle
from longvita.data.packing.packer import EpochPlan, SequenceStream, best_fit

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=300)


def plan(lengths, seed=0, epoch=0, length=100):
    samples = shuffle(np.arange(len(lengths)), seed, epoch)
    return EpochPlan(samples, np.asarray(lengths)[samples], length, seed, epoch)


def sequences(epoch_plan):
    return [epoch_plan.sequence(number).tolist() for number in range(epoch_plan.num_sequences)]


@given(LENGTHS)
def test_every_document_once_and_uncut(lengths):
    packed = sequences(plan(lengths))
    assert sorted(sample for documents in packed for sample in documents) == list(range(len(lengths)))
    assert all(0 < sum(lengths[sample] for sample in documents) <= 100 for documents in packed)


@given(LENGTHS, st.integers(0, 5), st.integers(0, 5))
def test_a_pure_function_of_its_arguments(lengths, seed, epoch):
    whole = plan(lengths, seed, epoch)
    assert sequences(whole) == sequences(plan(lengths, seed, epoch))
    # Asked for out of order, or from the middle, it says the same.
    again = plan(lengths, seed, epoch)
    last = whole.num_sequences - 1
    assert again.sequence(last).tolist() == whole.sequence(last).tolist()
    assert again.sequence(0).tolist() == whole.sequence(0).tolist()
    assert again.sequence(last + 1) is None


@given(LENGTHS)
def test_best_fit_wastes_less_than_half(lengths):
    """Two bins of best fit are never both at most half full."""
    filled = [sum(lengths[document] for document in documents) for documents in best_fit(lengths, 100)]
    assert sum(fill <= 50 for fill in filled) <= 1


def test_too_long_a_document_is_refused():
    with pytest.raises(ValueError, match="101 tokens; a sequence has room for 1 to 100"):
        best_fit([5, 101], 100)


def test_windows_are_packed_as_they_are_needed():
    lengths = np.random.default_rng(0).integers(1, 100, 20_000)
    epoch_plan = plan(lengths)
    epoch_plan.sequence(0)
    assert epoch_plan._windows_packed == 1 < len(epoch_plan._window_ends)
    assert epoch_plan.num_sequences > 9_000


class TestRandomness:
    """Packing moves documents about within a window, never for their lengths' sake beyond it."""

    LENGTHS = np.minimum(np.random.default_rng(1).lognormal(5, 1.2, 60_000).astype(int) + 1, 4096)

    @pytest.fixture(scope="class")
    def stream(self):
        """The samples in training order."""
        packed = plan(self.LENGTHS, length=4096)
        assert len(packed._window_ends) > 4
        return np.concatenate([packed.sequence(number) for number in range(packed.num_sequences)])

    def test_no_length_comes_early_or_late(self, stream):
        """Each tenth of the stream, the ends of the epoch too, has the mean length of all, and as many long ones."""
        long = np.percentile(self.LENGTHS, 95)
        for tenth in np.array_split(self.LENGTHS[stream], 10):
            error = self.LENGTHS.std() / len(tenth) ** 0.5
            assert abs(tenth.mean() - self.LENGTHS.mean()) < 4 * error
            expected = len(tenth) * (long < self.LENGTHS).mean()
            assert abs((tenth > long).sum() - expected) < 4 * expected**0.5

    def test_the_order_of_the_samples_is_random(self, stream):
        """Rank correlation of a sample's number and of its length with its place."""
        places = np.empty(len(stream))
        places[stream] = np.arange(len(stream))
        for column in (np.arange(len(stream)), self.LENGTHS.argsort().argsort()):
            assert abs(np.corrcoef(places, column)[0, 1]) < 4 / len(stream) ** 0.5

    def test_short_documents_keep_company_of_any_length(self):
        """Lengths of two short documents next to each other in a sequence are nearly as unlike as any two."""
        packed = plan(self.LENGTHS, length=4096)
        short = 4096 / 8
        pairs = [
            pair
            for number in range(packed.num_sequences)
            for pair in itertools.pairwise(self.LENGTHS[packed.sequence(number)])
            if max(pair) <= short
        ]
        left, right = np.asarray(pairs).T
        assert len(pairs) > 5_000
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.15


def test_other_seeds_and_epochs_give_other_orders():
    lengths = [10 + number % 30 for number in range(200)]
    orders = [sequences(plan(lengths, seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_fill_on_lengths_of_the_public_mix():
    """Text, pictures of up to 13 tiles and videos at 258 tokens a tile, in 16,384 tokens."""
    rng = np.random.default_rng(0)
    text = np.clip(rng.lognormal(np.log(200), 0.8, 6000), 16, 8192)
    tiles = rng.choice([0, 1, 3, 5, 7, 13, 20, 40, 60], 6000, p=[0.12, 0.2, 0.1, 0.2, 0.15, 0.13, 0.04, 0.03, 0.03])
    lengths = np.minimum(text + 258 * tiles, 16384).astype(int)
    assert plan(lengths, length=16384).fill > 0.98


def test_short_documents_of_different_lengths_share_sequences():
    lengths = [3] * 500 + [12] * 500
    mixed = [len({lengths[sample] for sample in documents}) == 2 for documents in sequences(plan(lengths))]
    assert np.mean(mixed) > 0.9


class TestStream:
    LENGTHS = [7 + number % 40 for number in range(90)]

    def stream(self):
        return SequenceStream(lambda epoch: plan(self.LENGTHS, epoch=epoch))

    def test_continues_epoch_after_epoch(self):
        stream = self.stream()
        expected = [documents for epoch in range(3) for documents in sequences(plan(self.LENGTHS, epoch=epoch))]
        assert [stream.sequence(number).tolist() for number in range(len(expected))] == expected

    @settings(max_examples=20)
    @given(st.integers(0, 120))
    def test_starts_anywhere(self, number):
        fresh, used = self.stream(), self.stream()
        for earlier in range(number):
            used.sequence(earlier)
        assert fresh.sequence(number).tolist() == used.sequence(number).tolist()
        assert used.sequence(0).tolist() == self.stream().sequence(0).tolist()


class TestMixture:
    def test_published_rule(self):
        assert len(select_samples(100, 0.25, 1000, 0, "a")) == 25
        assert len(select_samples(100, 0.259, 1000, 0, "a")) == 25
        assert len(select_samples(100, 1.0, 30, 0, "a")) == 30
        assert len(select_samples(3, 0.1, 30, 0, "a")) == 0
        assert len(select_samples(0, 1.0, 30, 0, "a")) == 0

    @given(st.integers(0, 300), st.floats(0, 4), st.integers(1, 500), st.integers(0, 9))
    def test_as_a_plain_restatement_takes_them(self, total, ratio, num, seed):
        wanted = min(int(total * ratio), num)
        left, plain = wanted, []
        while left > 0:
            plain.append(min(left, total))  # whole rounds through the file, then a part of one
            left -= total
        taken = select_samples(total, ratio, num, seed, "a").tolist()
        assert len(taken) == wanted
        for size in plain:
            part, taken = taken[:size], taken[size:]
            assert len(set(part)) == size and set(part) <= set(range(total))

    def test_a_share_takes_no_sample_twice(self):
        assert len(set(select_samples(100, 0.5, 1000, 0, "a").tolist())) == 50

    def test_above_one_repeats(self):
        counts = np.bincount(select_samples(10, 2.5, 1000, 0, "a"), minlength=10)
        assert counts.sum() == 25
        assert set(counts.tolist()) == {2, 3}

    def test_follows_the_seed_and_the_file(self):
        first = select_samples(100, 0.5, 1000, 0, "a").tolist()
        assert first == select_samples(100, 0.5, 1000, 0, "a").tolist()
        assert first != select_samples(100, 0.5, 1000, 1, "a").tolist()
        assert first != select_samples(100, 0.5, 1000, 0, "b").tolist()

    def test_shuffle_keeps_all(self):
        samples = np.asarray([4, 4, 1, 9])
        assert sorted(shuffle(samples, 0, 0).tolist()) == [1, 4, 4, 9]
        assert json.dumps(shuffle(np.arange(50), 0, 0).tolist()) != json.dumps(shuffle(np.arange(50), 0, 1).tolist())
