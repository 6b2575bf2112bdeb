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
from sae_lens_gba.saved.stock_form import stock_form
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config

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


def test_targets_fall_evenly_to_those_asked_for() -> None:
    sae = GBATrainingSAE(tiny_config(l0_warm_up_steps=100, l0_warm_up_start=2.0))
    trainer = make_trainer(sae, 160)
    targets = []
    for _ in range(120):
        step = take_steps(trainer, 1)
        targets.append(float(sae.adapter.targets.frequency.sum()))
        if len(targets) == 1:  # the start is measured at the targets of the start
            assert float(step.feature_acts.bool().sum()) / len(step.sae_in) == pytest.approx(
                8.0, rel=0.1
            )
    evenly = [4.0 * (2 - min(step / 100, 1)) for step in range(120)]
    assert targets == pytest.approx(evenly, rel=1e-4)
    assert sae.adapter.target_l0 == pytest.approx(4.0)
    assert float(sae.adapter.frequency.sum()) == pytest.approx(4.0, rel=0.25)


def test_l0_follows_targets_that_fall() -> None:
    sae = GBATrainingSAE(tiny_config(l0_warm_up_steps=600, l0_warm_up_start=2.4))
    trainer = make_trainer(sae, 600)
    for _ in range(4):
        step = take_steps(trainer, 120)
        assert float(step.losses["l0_over_target"]) == pytest.approx(1.0, abs=0.15)
    assert sae.adapter.warm_up > 1.2  # far from over: used before its end, it has the L0 asked for
    sae.eval()
    x = torch.cat([next(mixture(5)) for _ in range(8)])
    assert float((sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(4.0, rel=0.05)


def test_what_trains_with_more_active_latents_ends_with_those_asked_for() -> None:
    sae = GBATrainingSAE(
        tiny_config(l0_warm_up_steps=300, l0_warm_up_start=2.4, l0_warm_up_end=1.5)
    )
    trainer = make_trainer(sae, 400)
    step = take_steps(trainer, 400)
    assert float(sae.adapter.targets.frequency.sum()) == pytest.approx(1.5 * 4.0)
    assert float(step.losses["l0_over_target"]) == pytest.approx(1.0, abs=0.15)
    x = torch.cat([next(mixture(5)) for _ in range(8)])
    for one in (sae.eval(), stock_form(sae)):
        assert float((one.encode(x) > 0).sum(1).float().mean()) == pytest.approx(4.0, rel=0.05)


def test_no_target_is_raised_beyond_what_a_latent_can_do() -> None:
    sae = GBATrainingSAE(tiny_config(highest_target_frequency=0.4, l0_warm_up_steps=10))
    sae.adapter.warm_up = 2.4
    assert float(sae.adapter.targets.frequency.max()) == pytest.approx(0.6)
    sae = GBATrainingSAE(tiny_config(highest_target_frequency=0.9, l0_warm_up_steps=10))
    sae.adapter.warm_up = 2.4
    assert float(sae.adapter.targets.frequency.max()) == pytest.approx(0.9)


def test_without_a_warm_up_targets_are_as_asked_from_the_first_step() -> None:
    sae = GBATrainingSAE(tiny_config())
    take_steps(make_trainer(sae, 2), 1)
    assert torch.equal(sae.adapter.targets.frequency, sae.adapter.target_frequency)
