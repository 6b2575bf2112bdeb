import pytest
import torch

from sae_lens_gba.nested_reconstructions import NestedBands, NestedError
from sae_lens_gba.sparse_autoencoder_ops import ActiveSet


@pytest.mark.parametrize("exponent", [2.0, 1.0, 0.5])
def test_nested_error_is_that_of_running_sums(exponent: float) -> None:
    parts = torch.randn(4, 6, 3, dtype=torch.float64)
    target = torch.randn(6, 3, dtype=torch.float64)
    norms = (parts.cumsum(dim=0)[:-1] - target).norm(dim=2)
    plain = norms.pow(exponent).mean(dim=1).pow(2 / exponent).mean()
    torch.testing.assert_close(NestedError.apply(parts, target, exponent), plain)


@pytest.mark.parametrize("exponent", [2.0, 1.0, 0.5])
def test_a_running_sum_trains_its_last_part_alone(exponent: float) -> None:
    parts = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    before = torch.zeros_like(target)
    errors = []
    for k, part in enumerate(parts[:-1]):
        norms = (before + part - (target if k == 0 else target.detach())).norm(dim=1)
        errors.append(norms.pow(exponent).mean().pow(2 / exponent))
        before = (before + part).detach()
    plain = torch.autograd.grad(torch.stack(errors).mean(), (parts, target))
    ours = torch.autograd.grad(NestedError.apply(parts, target, exponent), (parts, target))
    torch.testing.assert_close(ours, plain)


def test_parts_of_the_output_are_those_of_each_bands_latents() -> None:
    torch.manual_seed(0)
    bands = NestedBands([0, 0, 1, 2], [1, 2, 3, 2])
    in_order = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3])
    W_dec, scale = torch.randn(8, 3, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    acts = torch.randn(5, 8, dtype=torch.float64).relu()
    rows, columns = acts.nonzero(as_tuple=True)
    active = ActiveSet(rows, columns, 5, 8)
    for group in (in_order, in_order[torch.randperm(8)]):
        band = torch.tensor([0, 0, 1, 2])[group]
        expected = [(acts * scale * (band == k)) @ W_dec for k in range(3)]
        dense = bands.dense_parts(acts, W_dec * scale[:, None], group)
        torch.testing.assert_close(dense, torch.stack(expected))
        sparse = bands.sparse_parts(acts[rows, columns], active, W_dec, scale, group)
        torch.testing.assert_close(sparse, torch.stack(expected))
