"""What is read in batches is what would be read at once; examples are drawn from all of it."""

from types import SimpleNamespace

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from sae_lens_gba import NeuronGroups
from sae_lens_gba.metrics import BestMatch, SelectivityMeter
from sae_lens_gba.report import reading as reading_module
from sae_lens_gba.report.compare import best_living, mutual_pairs
from sae_lens_gba.report.details import (
    BROKEN,
    PART_OF_CHARACTER,
    TOKENS_AFTER,
    TOKENS_BEFORE,
    Tokens,
    build_details,
    histogram,
    phi,
)
from sae_lens_gba.report.latent_sample import sample_latents
from sae_lens_gba.report.reading import Reading
from sae_lens_gba.report.results import LatentDetail
from sae_lens_gba.saved.saved_sae import SavedSAE

N_TOKENS, WIDTH, D_SAE, DEAD = 500, 50, 12, 5
TEXT = torch.arange(N_TOKENS).view(-1, WIDTH)
MODEL = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda tokens: str(tokens[0])))


@pytest.fixture
def sae() -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=8, d_sae=D_SAE))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter))
        sae.threshold.copy_(2 + torch.rand(D_SAE))
        sae.threshold[DEAD] = 1000
    return sae


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N_TOKENS, 8)


def read(sae: JumpReLUSAE, x: torch.Tensor, batch: int = 37) -> Reading:
    reading = Reading(SavedSAE(sae, {}, "here", "here"))
    for places in torch.arange(N_TOKENS).split(batch):
        reading.update(x[places], x[places], places)
    return reading


def details_of(reading: Reading, seed: int = 0) -> list[LatentDetail]:
    generator = torch.Generator().manual_seed(seed)
    return build_details(reading, range(D_SAE), TEXT, MODEL, generator)[0]


def test_activations_with_signs_are_counted_by_their_size(x: torch.Tensor) -> None:
    cfg = {"architecture": "abstopk", "d_in": 8, "d_sae": D_SAE, "k": 3}
    reading = Reading(SavedSAE(SAE.from_dict(cfg), {}, "here", "here"))
    reading.update(x, x, torch.arange(N_TOKENS))
    assert float(reading.frequency.sum()) == pytest.approx(3)
    assert (reading.firings().activation > 0).all()
    assert reading.saved.threshold is None


def test_how_the_text_is_cut_into_batches_does_not_matter(
    sae: JumpReLUSAE, x: torch.Tensor
) -> None:
    reading, firings = read(sae, x), read(sae, x).firings()
    acts = sae.encode(x)
    dense = torch.zeros(N_TOKENS, D_SAE)
    dense[firings.place, firings.latent] = firings.activation
    torch.testing.assert_close(dense, acts)
    torch.testing.assert_close(reading.max_activation, acts.amax(dim=0))
    measured = reading.selectivity.compute()
    at_once = SelectivityMeter(D_SAE)
    at_once.add((x - sae.b_dec) @ sae.W_enc + sae.b_enc, acts > 0)
    expected = at_once.compute()
    torch.testing.assert_close(measured.frequency, expected.frequency)
    torch.testing.assert_close(measured.z_score, expected.z_score)
    assert measured.z_score[DEAD] == firings.count[DEAD] == 0


def test_beyond_the_bound_examples_are_of_the_texts_beginning_and_a_note_says_so(
    sae: JumpReLUSAE, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_firings = int((sae.encode(x[:300]) > 0).sum())
    monkeypatch.setattr(reading_module, "MAX_FIRINGS", n_firings)
    reading, whole = read(sae, x, batch=100), read(sae, x)
    assert reading.firings().n_tokens == 300
    assert len(reading.firings().place) == n_firings
    torch.testing.assert_close(reading.frequency, whole.frequency)
    _, notes = build_details(reading, [0], TEXT, MODEL, torch.Generator())
    assert "Examples, histograms and co-firing are of the first 300 tokens" in notes[-1]


def test_the_strongest_contexts_come_with_the_tokens_around_them(
    sae: JumpReLUSAE, x: torch.Tensor
) -> None:
    acts = sae.encode(x).detach()
    for detail in details_of(read(sae, x)):
        own = acts[:, detail.latent]
        by_sequence = own.view(TEXT.shape).amax(dim=1)
        strongest_first = by_sequence[by_sequence > 0].sort(descending=True).values.tolist()
        shown = [context.activations[context.focus] for context in detail.top]
        assert shown == pytest.approx(strongest_first, rel=1e-3)
        for context in detail.top:
            place = int(context.tokens[context.focus])
            start, stop = place // WIDTH * WIDTH, place // WIDTH * WIDTH + WIDTH
            around = range(max(start, place - TOKENS_BEFORE), min(stop, place + TOKENS_AFTER + 1))
            assert context.tokens == [str(token) for token in around]
            assert context.activations == pytest.approx(own[list(around)].tolist(), rel=1e-3)


def test_a_character_of_several_tokens_is_shown_with_the_first_of_them() -> None:
    bytes_as_tokens = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(bytes_as_tokens, merges=[]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

    def read(text: str, start: int = 0) -> list[str]:
        return Tokens(tokenizer).read_in_a_row(tokenizer.encode(text)[start:])

    part = PART_OF_CHARACTER
    assert read("aé 日🙂!") == ["a", "é", part, " ", "日", part, part, "🙂", *[part] * 3, "!"]
    # what has no beginning stays as it is, and what is no character even whole
    assert read("日a", start=1) == [BROKEN, BROKEN, "a"]
    assert Tokens(tokenizer).read_in_a_row(
        [tokenizer.encode("日")[0], *tokenizer.encode("abc")]
    ) == [
        BROKEN,
        *"abc",
    ]


def test_examples_of_an_interval_are_drawn_from_that_part_of_the_activations(
    sae: JumpReLUSAE, x: torch.Tensor
) -> None:
    reading = read(sae, x)
    for detail in details_of(reading):
        weakest_first = reading.firings().of(detail.latent)[1].sort().values
        for interval in detail.intervals:
            part = weakest_first[
                int(interval.low * len(weakest_first)) : int(interval.high * len(weakest_first))
            ]
            for context in interval.contexts:
                strength = context.activations[context.focus]
                assert float(part[0]) * 0.999 <= strength <= float(part[-1]) * 1.001
            sequences = [int(c.tokens[c.focus]) // WIDTH for c in interval.contexts]
            assert len(set(sequences)) == len(sequences)
    assert details_of(reading, seed=1) != details_of(reading) == details_of(reading)


def test_the_histogram_counts_every_activation_in_its_bin() -> None:
    # bins of 0.1: 0.05 in the first, 0.1 opens the second, the largest closes the last
    found = histogram(torch.tensor([0.05, 0.1, 0.15, 4.0]))
    assert found.width == pytest.approx(0.1)
    assert [(i, n) for i, n in enumerate(found.counts) if n] == [(0, 1), (1, 2), (39, 1)]
    assert histogram(torch.tensor([])).counts == []


def test_co_firing_is_the_correlation_of_being_active(sae: JumpReLUSAE, x: torch.Tensor) -> None:
    with torch.no_grad():  # 3 fires where 2 does
        for weights in (sae.W_enc.T, sae.b_enc, sae.threshold):
            weights[3] = weights[2]
    firings = read(sae, x).firings()
    expected = torch.corrcoef((sae.encode(x) > 0).double().T).nan_to_num()
    for latent in (2, 7):
        found = phi(firings.together(firings.of(latent)[0]), firings.count, latent, N_TOKENS)
        expected[latent, latent] = 0
        torch.testing.assert_close(found, expected[latent])
    assert expected[2, 3] == pytest.approx(1)


def test_the_sample_is_of_latents_that_fire_as_many_of_each_group() -> None:
    frequency = torch.linspace(0.5, 0.01, 40)
    frequency[::2] = 0
    group = torch.arange(40) // 20
    groups = NeuronGroups(group, frequency, frequency)
    chosen = torch.tensor(sample_latents(frequency, groups, 8, torch.Generator()))
    assert len(set(chosen.tolist())) == 8
    assert (frequency[chosen] > 0).all()
    assert group[chosen].bincount().tolist() == [4, 4]
    # without groups, from the most active to the least
    assert sample_latents(frequency, None, 2, torch.Generator()) == [1, 39]


def test_a_dead_latent_of_the_other_is_no_match() -> None:
    rows = torch.randn(30, 8)
    order = torch.randperm(30)
    alive = order != 4
    found = best_living(rows, rows[order] * (0.1 + torch.rand(30, 1)), alive)
    same = order[found.candidate] == torch.arange(30)
    assert same.sum() == 29
    assert not same[4]
    assert found.similarity[4] < 0.99
    assert (best_living(rows, rows, torch.zeros(30, dtype=torch.bool)).similarity == 0).all()


def test_a_match_is_mutual_only_if_each_is_the_others_best() -> None:
    # both 0 and 1 have 0 for their best, which has 0; 2 and 1 have each other, but hardly
    forth = BestMatch(torch.tensor([1.0, 0.9, 0.2]), torch.tensor([0, 0, 1]))
    back = BestMatch(torch.tensor([1.0, 0.2]), torch.tensor([0, 2]))
    assert mutual_pairs(forth, back).tolist() == [0]
