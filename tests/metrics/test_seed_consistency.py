import pytest
import torch

from sae_lens_gba.metrics import shares_consistent, top_latents
from tests.toolbox import random_rows


def test_identical_permuted_and_scaled_runs_are_fully_consistent() -> None:
    W = random_rows(60, 16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for other in (W, W[order], 7 * W):
        assert shares_consistent(W, other, threshold=0.9999) == [1.0]


def test_unrelated_and_opposite_directions_are_not_the_same_latent() -> None:
    a, b = random_rows(100, 32), random_rows(100, 32, seed=1)
    assert shares_consistent(a, b) == shares_consistent(a, -a) == [0.0]


def test_shares_are_of_the_latents_that_rank_highest() -> None:
    a = torch.eye(4)
    b = torch.stack([a[0], a[2]])  # of a's latents, 0 and 2 exist in b
    score = torch.tensor([9.0, 1.0, 8.0, 2.0])  # ranked 0, 2, 3, 1
    shares = shares_consistent(a, b, score, [0.25, 0.5, 0.75, 1.0])
    assert shares == pytest.approx([1.0, 1.0, 2 / 3, 0.5])
    assert shares_consistent(b, a) == [1.0]  # of b's, all exist in a


def test_the_top_share_rounds_up_and_ranks_best_first() -> None:
    score = torch.tensor([0.1, 0.5, 0.3, 0.4])
    assert top_latents(score, 0.3).tolist() == [1, 3]
    assert top_latents(score, 0.25).tolist() == [1]
    assert top_latents(score).tolist() == [1, 3, 2, 0]
    assert len(top_latents(torch.rand(10), 0.1)) == 1  # 0.1 * 10 is not 1 + 1e-16


def test_a_ranking_that_is_impossible_is_refused() -> None:
    with pytest.raises(ValueError, match="top_share=0"):
        top_latents(torch.ones(3), 0)
    with pytest.raises(ValueError, match="NaN"):
        top_latents(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="need a score"):
        shares_consistent(torch.eye(2), torch.eye(2), top_shares=[0.5])
    with pytest.raises(ValueError, match="score has shape"):
        shares_consistent(torch.eye(2), torch.eye(2), score=torch.ones(3))
