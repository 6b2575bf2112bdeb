import torch

from sae_lens_gba.nested_reconstructions import NestedBands, NestedSquaredError
from sae_lens_gba.sparse_autoencoder_ops import ActiveSet


def test_nested_squared_error_is_that_of_running_sums() -> None:
    parts = torch.randn(4, 6, 3, dtype=torch.float64)
    target = torch.randn(6, 3, dtype=torch.float64)
    plain = (parts.cumsum(dim=0)[:-1] - target).square().sum(dim=2).mean()
    torch.testing.assert_close(NestedSquaredError.apply(parts, target), plain)


def test_a_running_sum_trains_its_last_part_alone() -> None:
    parts = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    before = torch.zeros_like(target)
    errors = []
    for k, part in enumerate(parts[:-1]):
        errors.append((before + part - (target if k == 0 else target.detach())).square().sum(dim=1))
        before = (before + part).detach()
    plain = torch.autograd.grad(torch.stack(errors).mean(), (parts, target))
    ours = torch.autograd.grad(NestedSquaredError.apply(parts, target), (parts, target))
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
