"""What is counted in batches is what would be counted at once."""

import pytest
import torch

from sae_lens_gba.metrics import selectivity
from sae_lens_gba.report.context_keeper import NO_TOKEN, TOKENS_AFTER, TOKENS_BEFORE, ContextKeeper
from sae_lens_gba.report.decoder_matching import mutual_matches, nearest_in, nearest_other
from sae_lens_gba.report.latent_statistics import (
    CoFiringCounts,
    GrowingHistogram,
    LatentStatistics,
)


def sparse_activations(n_tokens: int = 500, d_sae: int = 12) -> torch.Tensor:
    """Rising range over time, one latent that never fires."""
    acts = torch.rand(n_tokens, d_sae) * torch.linspace(0.1, 30, n_tokens).unsqueeze(1)
    acts[torch.rand(n_tokens, d_sae) < 0.7] = 0
    acts[:, 5] = 0
    return acts


def test_moments_do_not_depend_on_how_the_text_is_cut() -> None:
    pre_activations = torch.randn(500, 12) * 2 + 1
    pre_activations[:, 5] -= 100
    threshold = 2.0 + torch.rand(12)
    acts = torch.where(pre_activations > threshold, pre_activations, 0.0)
    statistics = LatentStatistics(12)
    for rows in torch.arange(500).split(37):
        statistics.update(acts[rows], pre_activations[rows])
    expected = selectivity([pre_activations], threshold)
    assert statistics.n_tokens == 500
    torch.testing.assert_close(statistics.frequency(), expected.frequency)
    torch.testing.assert_close(statistics.z_score().float(), expected.z_score)
    torch.testing.assert_close(statistics.maximum, acts.amax(dim=0))
    assert statistics.z_score()[5] == 0
    assert statistics.l0() == pytest.approx(float((acts != 0).sum(dim=1).float().mean()))


def test_the_growing_histogram_loses_no_activation() -> None:
    acts = sparse_activations()
    histogram = GrowingHistogram(12, n_bins=8)
    for part in acts.split(41):
        histogram.update(part)
    for latent in range(12):
        values = acts[:, latent][acts[:, latent] > 0].double()
        bins = (values / histogram.width[latent]).long().clamp(max=7)
        assert torch.equal(histogram.counts[latent], bins.bincount(minlength=8))
        if len(values):
            # the range was doubled only as far as it had to be
            assert histogram.width[latent] * 4 <= values.max() * (1 + 1e-6)
            assert values.max() <= histogram.width[latent] * 8 * (1 + 1e-6)


def test_co_firing_is_the_correlation_of_being_active() -> None:
    acts = sparse_activations()
    acts[:, 3] = acts[:, 2] * 2  # always together
    sampled = torch.tensor([2, 7])
    counts = CoFiringCounts(sampled, 12)
    for part in acts.split(64):
        counts.update(part)
    active = (acts != 0).double()
    expected = torch.corrcoef(active.T)[sampled].nan_to_num()
    expected[0, 2] = expected[1, 7] = 0
    phi = counts.correlation((acts != 0).sum(dim=0), len(acts))
    torch.testing.assert_close(phi, expected)
    assert phi[0, 3] == pytest.approx(1)


def test_the_keeper_keeps_the_strongest_with_the_tokens_around_them() -> None:
    tokens = torch.arange(20 * 50).view(20, 50)
    acts = torch.rand(20, 50, 3)
    keeper = ContextKeeper(3, 4)
    for start in range(0, 20, 3):
        part = slice(start, start + 3)
        keeper.offer(acts[part], tokens[part], acts[part])
    for latent in range(3):
        by_sequence = acts[:, :, latent].max(dim=1)
        best = by_sequence.values.topk(4)
        assert torch.equal(keeper.key[latent], best.values)
        for k, sequence in enumerate(best.indices.tolist()):
            position = int(by_sequence.indices[sequence])
            for offset in range(-TOKENS_BEFORE, TOKENS_AFTER + 1):
                token = int(keeper.tokens[latent, k, TOKENS_BEFORE + offset])
                act = float(keeper.activations[latent, k, TOKENS_BEFORE + offset])
                if 0 <= position + offset < 50:
                    assert token == 50 * sequence + position + offset
                    assert act == acts[sequence, position + offset, latent]
                else:
                    assert (token, act) == (NO_TOKEN, 0)


def test_what_is_never_active_is_not_kept() -> None:
    keeper = ContextKeeper(1, 3)
    nothing = torch.full((2, 5, 1), -torch.inf)
    keeper.offer(nothing, torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, 1))
    assert not keeper.key.isfinite().any()


def test_random_keys_give_a_uniform_sample() -> None:
    # one active token a sequence, the sequence's number as its activation: the mean of the
    # numbers kept, 40 of 2000, has mean 999.5 and deviation 577 / sqrt(40) = 91
    keeper = ContextKeeper(1, 40)
    generator = torch.Generator().manual_seed(1)
    for start in range(0, 2000, 100):
        acts = torch.zeros(100, 4, 1)
        acts[:, 2, 0] = torch.arange(start, start + 100).float() + 1
        key = torch.where(acts > 0, torch.rand(acts.shape, generator=generator), -torch.inf)
        keeper.offer(key, torch.zeros(100, 4, dtype=torch.int64), acts)
    kept = keeper.activations[0, :, TOKENS_BEFORE] - 1
    assert len(kept.unique()) == 40
    assert abs(float(kept.mean()) - 999.5) < 3 * 91


def test_nearest_rows_are_those_of_the_full_cosine_matrix() -> None:
    rows, others = torch.randn(1500, 6), torch.randn(40, 6)
    cosine = torch.nn.functional.cosine_similarity(
        rows.unsqueeze(1), others.unsqueeze(0), dim=2
    ).max(dim=1)
    found = nearest_in(rows, others, among=torch.ones(40, dtype=torch.bool))
    assert torch.equal(found.latent, cosine.indices)
    torch.testing.assert_close(found.cosine, cosine.values)
    # more than a block of 1024, and never itself
    nearest = nearest_other(rows)
    assert bool((nearest.latent != torch.arange(1500)).all())
    assert bool((nearest.cosine < 1 - 1e-6).all())


def test_matches_do_not_see_length_or_order_and_leave_out_what_does_not_count() -> None:
    rows = torch.randn(30, 8)
    order = torch.randperm(30)
    others = rows[order] * (0.1 + torch.rand(30, 1))
    found = nearest_in(rows, others, among=torch.ones(30, dtype=torch.bool))
    assert torch.equal(order[found.latent], torch.arange(30))
    among = order != 4
    found = nearest_in(rows, others, among=among)
    assert found.cosine[4] < 0.99
    assert bool((order[found.latent] != 4).all())
    none = nearest_in(rows, others, among=torch.zeros(30, dtype=torch.bool))
    assert bool((none.cosine == 0).all())


def test_a_match_is_mutual_only_if_each_is_the_others_best() -> None:
    a = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [-1.0, 0.2]])
    # both a0 and a1 are nearest to b0, which is nearest to a0; a2 to b1 has a cosine of 0.2
    everything = torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    matches = mutual_matches(nearest_in(a, b, everything[0]), nearest_in(b, a, everything[1]))
    assert matches.tolist() == [0]


def test_a_single_latent_is_its_own_nearest() -> None:
    found = nearest_other(torch.randn(1, 4))
    assert (found.latent.tolist(), found.cosine.tolist()) == ([0], [0.0])
