from typing import Literal

import pytest
import torch
from sae_lens.synthetic.evals import mean_correlation_coefficient

from sae_lens_gba.metrics import (
    consistency_over_seeds,
    match_one_to_one,
    pairwise_mcc,
    shares_consistent,
    top_latents,
)


def random_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_identical_permuted_and_scaled_runs_are_fully_consistent() -> None:
    W = random_rows(60, 16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for other in (W, W[order], 7 * W):
        assert shares_consistent(W, other, threshold=0.9999) == [1.0]
        assert pairwise_mcc(W, other) == pytest.approx(1.0, abs=1e-5)


def test_unrelated_runs_share_nothing() -> None:
    a, b = random_rows(100, 32), random_rows(100, 32, seed=1)
    assert shares_consistent(a, b) == [0.0]
    assert pairwise_mcc(a, b) < 0.6


def test_opposite_directions_are_not_the_same_latent() -> None:
    W = random_rows(50, 64)
    assert shares_consistent(W, -W) == [0.0]


def test_shares_are_of_the_latents_that_rank_highest() -> None:
    a = torch.eye(4)
    b = torch.stack([a[0], a[2]])  # of a's latents, 0 and 2 exist in b
    score = torch.tensor([9.0, 1.0, 8.0, 2.0])  # ranked 0, 2, 3, 1
    assert shares_consistent(a, b, score, [0.25, 0.5, 0.75, 1.0]) == [
        1.0,
        1.0,
        pytest.approx(2 / 3),
        0.5,
    ]


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


def test_over_seeds_every_ordered_pair_is_compared() -> None:
    # run 1 has both latents of run 0 and two more: all of 0 is in 1, half of 1 is in 0
    runs = [torch.eye(4)[:2], torch.eye(4), torch.eye(4)[2:]]
    shares = consistency_over_seeds(runs)
    assert shares == {
        (0, 1): 1.0,
        (1, 0): 0.5,
        (0, 2): 0.0,
        (2, 0): 0.0,
        (1, 2): 0.5,
        (2, 1): 1.0,
    }


def test_over_seeds_each_run_is_ranked_by_its_own_score() -> None:
    runs = [torch.eye(4)[:2], torch.eye(4)[1:3]]  # they share the second axis only
    best_first = [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])]
    assert consistency_over_seeds(runs, best_first, top_share=0.5) == {(0, 1): 1.0, (1, 0): 1.0}


def test_one_run_alone_has_no_consistency() -> None:
    with pytest.raises(ValueError, match="at least two runs"):
        consistency_over_seeds([torch.eye(2)])


def test_pairwise_mcc_is_the_hosts_mean_correlation_coefficient() -> None:
    a, b = random_rows(40, 8), random_rows(55, 8, seed=1)
    assert pairwise_mcc(a, b) == pytest.approx(mean_correlation_coefficient(a, b), abs=1e-6)


@pytest.mark.parametrize("method", ["hungarian", "greedy"])
@pytest.mark.parametrize(("n", "m"), [(90, 90), (90, 130), (130, 90)])
def test_a_matching_uses_no_latent_twice_and_leaves_none_that_could_be_paired(
    method: Literal["hungarian", "greedy"], n: int, m: int
) -> None:
    a, b = random_rows(n, 8), random_rows(m, 8, seed=1)
    match = match_one_to_one(a, b, method=method)
    assert len(match.a) == min(n, m)
    assert len(set(match.a.tolist())) == len(set(match.b.tolist())) == min(n, m)
    cosines = torch.nn.functional.cosine_similarity(a[match.a], b[match.b]).abs()
    torch.testing.assert_close(match.similarity, cosines)


def test_greedy_finds_the_matching_of_permuted_runs() -> None:
    a = random_rows(200, 16)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    noisy = a[order] + 0.05 * random_rows(200, 16, seed=2)
    match = match_one_to_one(a, noisy, method="greedy")
    assert torch.equal(order[match.b], match.a)


def test_greedy_is_never_better_than_hungarian_and_not_much_worse() -> None:
    a, b = random_rows(150, 8), random_rows(150, 8, seed=1)
    greedy, optimal = pairwise_mcc(a, b, "greedy"), pairwise_mcc(a, b, "hungarian")
    assert 0.9 * optimal < greedy <= optimal


def test_greedy_takes_the_most_alike_pair_first() -> None:
    # cosines [[1.0, 0.8], [0.8, 0.28]]: greedy takes 1.0 + 0.28, the best sum is 0.8 + 0.8
    a = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    b = torch.tensor([[1.0, 0.0], [0.8, -0.6]])
    greedy = match_one_to_one(a, b, method="greedy")
    assert greedy.similarity.tolist() == pytest.approx([1.0, 0.28])
    assert pairwise_mcc(a, b, "hungarian") == pytest.approx(0.8)


def test_above_the_affordable_size_the_automatic_choice_is_greedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sae_lens_gba.metrics.seed_consistency.MAX_HUNGARIAN", 1)
    a = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    b = torch.tensor([[1.0, 0.0], [0.8, -0.6]])
    assert pairwise_mcc(a, b) == pytest.approx(0.64)  # greedy's, see the test above


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="optimal"):
        match_one_to_one(torch.eye(2), torch.eye(2), method="optimal")  # type: ignore[arg-type]
