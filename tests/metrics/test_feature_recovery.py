import pytest
import torch
from sae_lens.util import cosine_similarities
from torch.overrides import TorchFunctionMode

from sae_lens_gba.metrics import best_match
from tests.toolbox import random_rows


def test_order_scale_and_sign_of_the_learned_directions_do_not_matter() -> None:
    V = random_rows(50, 16)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    scale = torch.linspace(-3, 5, 50).unsqueeze(1) + 0.01  # some negative, none zero
    match = best_match(V, V[order] * scale)
    for learned in (V, V[order] * scale):
        assert (best_match(V, learned).similarity > 0.9999).all()
    assert torch.equal(match.candidate, order.argsort())


def test_signed_recovery_tells_a_feature_from_its_opposite() -> None:
    V = random_rows(50, 64)
    assert (best_match(V, -V).similarity > 0.9999).all()
    assert (best_match(V, -V, signed=True).similarity < 0.9).all()


def test_the_match_is_the_largest_cosine() -> None:
    # cosines of the axes with w = (4, 3) / 5: 0.8 and 0.6; the third axis is found exactly
    V = torch.eye(3)
    W = torch.tensor([[4.0, 3.0, 0.0], [0.0, 0.0, -2.0]])
    torch.testing.assert_close(best_match(V, W).similarity, torch.tensor([0.8, 0.6, 1.0]))
    assert best_match(V, W).candidate.tolist() == [0, 0, 1]


@pytest.mark.parametrize("max_cosines", [1, 37, 37 * 5, 10**9])
def test_the_size_of_the_chunks_does_not_change_the_result(max_cosines: int) -> None:
    V, W = random_rows(23, 8), random_rows(37, 8, seed=1)
    whole = best_match(V, W)
    chunked = best_match(V, W, max_cosines=max_cosines)
    torch.testing.assert_close(chunked.similarity, whole.similarity)
    assert torch.equal(chunked.candidate, whole.candidate)


def test_the_cosines_are_the_hosts() -> None:
    V, W = random_rows(23, 8), torch.cat([random_rows(5, 8, seed=1), torch.zeros(1, 8)])
    expected = cosine_similarities(V, W).max(dim=1)
    match = best_match(V, W, signed=True)
    torch.testing.assert_close(match.similarity, expected.values)
    assert torch.equal(match.candidate, expected.indices)


def test_the_full_matrix_of_cosines_never_exists() -> None:
    # 4000 x 4000 float32 would be 64 MB; with a million at a time the largest is 4 MB
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        best_match(random_rows(4000, 8), random_rows(4000, 8, seed=1), max_cosines=10**6)
    assert 500_000 < largest <= 10**6


def test_short_rows_have_directions_too() -> None:
    rows = random_rows(5, 8)
    torch.testing.assert_close(best_match(1e-9 * rows, rows).similarity, torch.ones(5))


def test_a_dead_direction_of_zeros_matches_nothing() -> None:
    V = torch.eye(2)
    assert best_match(V, torch.zeros(1, 2)).similarity.tolist() == [0.0, 0.0]


def test_what_can_not_be_compared_is_refused() -> None:
    for W in (torch.zeros(0, 4), torch.ones(3, 5), torch.ones(4)):
        with pytest.raises(ValueError, match="can't compare"):
            best_match(torch.ones(2, 4), W)
    with pytest.raises(ValueError, match="no directions"):
        best_match(torch.ones(2, 2), torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]))


def test_a_matrix_compared_with_itself_does_not_match_each_row_with_itself() -> None:
    V = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    for max_cosines in (3, 100):
        match = best_match(V, V, max_cosines=max_cosines, exclude_same=True)
        torch.testing.assert_close(match.similarity, torch.tensor([0.8, 0.8, 0.6]))
        assert match.candidate.tolist() == [1, 0, 1]


def test_half_precision_with_a_row_of_zeros_has_numbers() -> None:
    rows = torch.eye(4).half()
    candidates = torch.cat([torch.zeros(1, 4), torch.eye(4)]).half()
    assert best_match(rows, candidates).similarity.tolist() == pytest.approx([1.0] * 4)
