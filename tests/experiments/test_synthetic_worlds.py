"""The worlds of the benchmarks are SAELens' own, built and sampled faster."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_lens.synthetic import SyntheticModel

from experiments.lab.sparse_samples import SparseSampler
from experiments.lab.synthetic_worlds import build_world, synthsaebench

N = 32_768
WORLD = synthsaebench(256, 32, 4, 1e-2)


@pytest.fixture(scope="module")
def theirs() -> SyntheticModel:
    return SyntheticModel(WORLD)


@pytest.fixture(scope="module")
def drawn(theirs: SyntheticModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (N, 256) by SAELens' sampler and by ours, of the same model."""
    torch.manual_seed(0)
    ours = torch.zeros(N, 256)
    samples, features, values = SparseSampler(theirs).firings(N)
    ours[samples, features] = values
    return theirs.activation_generator.sample(N), ours


def _deviations(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of two shares of N samples each, in standard deviations of their difference."""
    spread = (first * (1 - first) + second * (1 - second)) / N
    return (first - second) / spread.clamp(min=1 / N**2).sqrt()


def test_a_world_is_saelens_own_model(theirs: SyntheticModel, tmp_path: Path) -> None:
    for ours in (build_world(WORLD, tmp_path), build_world(WORLD, tmp_path)):  # built, and kept
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=2e-6)
        generators = theirs.activation_generator, ours.activation_generator
        for name in ("firing_probabilities", "mean_firing_magnitudes", "std_firing_magnitudes"):
            assert torch.equal(*(getattr(generator, name) for generator in generators))


def test_every_feature_fires_as_often(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    z = _deviations(*((acts > 0).float().mean(dim=0) for acts in drawn))
    assert z.abs().max() < 4.5
    assert 0.8 < z.std() < 1.2


def test_pairs_fire_together_as_often(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Children under their parents, exclusive siblings and correlated features among them."""
    z = _deviations(*((acts > 0).float().T @ (acts > 0).float() / N for acts in drawn))
    pairs = z[tuple(torch.triu_indices(256, 256, offset=1))]
    assert pairs.abs().max() < 5.5
    assert pairs.std() < 1.15
    never = [((acts > 0).float().T @ (acts > 0).float() == 0).float().mean() for acts in drawn]
    assert never[0] > 0.05  # the exclusive ones, and some by chance
    assert abs(never[0] - never[1]) < 0.01


def test_magnitudes_have_the_same_moments(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    often = (drawn[0] > 0).float().mean(dim=0) > 0.02
    for power in (1, 2, 3):
        (mean, error), (other, other_error) = (
            _mean_where_active(acts[:, often].double(), power) for acts in drawn
        )
        z = (mean - other) / (error.square() + other_error.square()).sqrt()
        assert z.abs().max() < 4.5
        assert z.std() < 1.4
        assert (error / mean).max() < 0.05  # enough of them to tell a difference


def _mean_where_active(acts: torch.Tensor, power: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of each feature's magnitudes to a power, and its standard error, (n_features,)."""
    n, powers = (acts > 0).sum(dim=0), acts.pow(power)
    mean = powers.sum(dim=0) / n
    variance = powers.square().sum(dim=0) / n - mean.square()
    return mean, (variance / n).sqrt()


def test_inputs_are_the_firings_directions(theirs: SyntheticModel) -> None:
    sampler = SparseSampler(theirs)
    torch.manual_seed(3)
    x = sampler.sample(64)
    torch.manual_seed(3)
    samples, features, values = sampler.firings(64)
    dense = torch.zeros(64, 256)
    dense[samples, features] = values
    with torch.no_grad():
        torch.testing.assert_close(x, theirs.feature_dict(dense))


def test_what_cannot_be_sampled_is_refused() -> None:
    plain = SyntheticModel(replace(WORLD, correlation=None, orthogonalization=None))
    with pytest.raises(ValueError, match="correlation=None"):
        SparseSampler(plain)
    with pytest.raises(ValueError, match="orthogonalization=None"):
        build_world(replace(WORLD, orthogonalization=None), Path())
