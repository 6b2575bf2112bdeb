"""The promise of `target_l0`, on SAELens' own synthetic model, with defaults alone."""

from collections.abc import Iterator

import pytest
import torch
from sae_lens.synthetic import (
    HierarchyConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from tests.toolbox import make_trainer

D_IN, D_SAE, BATCH = 64, 256, 1024


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    torch.manual_seed(0)
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=512,
            hidden_dim=D_IN,
            firing_probability=ZipfianFiringProbabilityConfig(0.5, 0.4, 0.01),
            hierarchy=HierarchyConfig(total_root_nodes=8, branching_factor=4, max_depth=2),
            mean_firing_magnitudes=4.0,
            std_firing_magnitudes=0.5,
            seed=0,
        )
    )
    with torch.no_grad():
        return torch.cat([model.sample(BATCH) for _ in range(64)])


@pytest.mark.parametrize("target_l0", [4.0, 8.0, 16.0])
def test_training_ends_within_15_percent_of_target_l0(
    activations: torch.Tensor, target_l0: float
) -> None:
    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from activations[: 60 * BATCH].split(BATCH)

    sae = GBATrainingSAE(GBATrainingSAEConfig(D_IN, D_SAE, target_l0=target_l0))
    make_trainer(sae, 600, batches(), train_batch_size_samples=BATCH,
                 total_training_samples=600 * BATCH).fit()  # fmt: skip
    held_out = activations[60 * BATCH :]
    l0 = float((sae.eval().encode(held_out) > 0).float().sum(dim=1).mean())
    assert l0 == pytest.approx(target_l0, rel=0.15)
