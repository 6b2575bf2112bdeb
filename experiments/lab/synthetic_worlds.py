"""SAELens' synthetic models that the benchmarks use, each built once."""

from dataclasses import replace
from pathlib import Path

import torch
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from sae_lens_gba.atomic_write import write_atomically


def synthsaebench(
    n_features: int = 16_384,
    d_in: int = 768,
    n_roots: int = 128,
    least_probability: float = 5e-4,
) -> SyntheticModelConfig:
    """The recipe of SynthSAEBench-16k (arXiv 2602.14687), second version, at any size."""
    return SyntheticModelConfig(
        num_features=n_features,
        hidden_dim=d_in,
        firing_probability=ZipfianFiringProbabilityConfig(
            exponent=0.5, max_prob=0.4, min_prob=least_probability
        ),
        hierarchy=HierarchyConfig(
            total_root_nodes=n_roots,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )


def build_world(config: SyntheticModelConfig, folder: Path) -> SyntheticModel:
    """``SyntheticModel(config)``, with its directions made orthogonal the short way.

    Args:
        config: with an orthogonalisation.
        folder: where the directions are kept, for the next time.
    """
    settings = config.orthogonalization
    if settings is None:
        raise ValueError("orthogonalization=None: build the SyntheticModel itself.")
    model = SyntheticModel(replace(config, orthogonalization=None))
    vectors = model.feature_dict.feature_vectors.data
    key = [config.num_features, config.hidden_dim, config.seed, settings.num_steps, settings.lr]
    file = folder / f"directions_{'_'.join(map(str, key))}.safetensors"
    if not file.is_file():
        found = orthogonalised(vectors, settings.num_steps, settings.lr)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda path: save_file({"directions": found}, path))
    vectors.copy_(load_file(file)["directions"])
    return model


def orthogonalised(directions: torch.Tensor, n_steps: int, lr: float) -> torch.Tensor:
    """As SAELens' orthogonalize_embeddings, (n, d) -> (n, d), without the n x n products.

    The squares of all products of two rows sum to those of the d x d Gram matrix.
    """
    rows = F.normalize(directions, dim=1, eps=1e-8).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=lr)
    for _ in range(n_steps):
        v = rows.detach()
        squared_norm = v.square().sum(dim=1, keepdim=True)
        own = squared_norm * v
        rows.grad = 4 * (v @ (v.T @ v) - own + len(v) * (own - v))
        optimizer.step()
    return F.normalize(rows.detach(), dim=1, eps=1e-8)
