import torch

from sae_lens_gba.metrics import share_on_target


def test_on_target_is_within_a_factor_of_it_both_ends_included() -> None:
    target = torch.full((6,), 0.1)
    frequency = torch.tensor([0.0, 0.04, 0.05, 0.1, 0.2, 0.21])
    assert share_on_target(frequency, target) == 0.5
    assert share_on_target(frequency, target, within=3.0) == torch.tensor(5 / 6)
