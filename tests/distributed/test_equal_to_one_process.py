"""Ranks that each hold a part of the latents do what one process does with all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens_gba.distributed import Ranks
from sae_lens_gba.distributed.share import LatentShare
from tests.distributed.ranks_do import (
    fit_beside_one_process,
    train_beside_one_process,
    train_twice,
)
from tests.distributed.several import results
from tests.toolbox import tiny_config

# settings of the SAE, and what is special about the run
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "latents that ranks do not divide, falling targets": (
        {"d_sae": 61, "l0_warm_up_steps": 50, "l0_warm_up_end": 1.3},
        {},
    ),
    "shards of different sizes": ({}, {"uneven": True}),
    "dense on one rank, sparse on another": ({}, {"dense_ranks": [0]}),
    "dense products, fixed steps": ({"sparse_below_density": 0.0, "bias_update": "group_mean"}, {}),
    "the whole reconstruction alone, dense on one rank": (
        {"n_nested_reconstructions": 1},
        {"dense_ranks": [1]},
    ),
    "gradients that one rank rounds otherwise": ({}, {"rounds_otherwise": True}),
    "relu": ({"activation": "relu"}, {}),
    "the paper's rule, tied": ({"bias_update": "paper", "tied": True}, {}),
    "transcoder, dense on one rank": ({"architecture": "gba_transcoder"}, {"dense_ranks": [0]}),
    "skip transcoder, nested sets": (
        {"architecture": "gba_skip_transcoder", "n_nested_reconstructions": 3, "d_sae": 61},
        {"uneven": True},
    ),
}
COUNTERS = {
    f"adapter.{name}"
    for name in ("group", "fire_counts", "near_counts", "silent_samples", "n_samples", "n_steps")
}


@pytest.mark.parametrize(("world", "names"), [(2, list(CASES)), (3, list(CASES)[1:4])])
def test_sixty_steps_and_a_calibration_are_those_of_one_process(
    tmp_path: Path, world: int, names: list[str]
) -> None:
    found = results(train_beside_one_process, world, tmp_path, {n: CASES[n] for n in names})[0]
    assert list(found) == names
    for name, case in found.items():
        assert case["shared is bit-equal"], name
        for when in ("trained", "calibrated"):
            far = {k: v for k, v in case[when].items() if v > (0 if k in COUNTERS else 1e-9)}
            assert not far, (name, when, far)
        one, several = case["l0"]
        assert one == several, name
        one, several = case["said"]
        assert one == pytest.approx(several, rel=1e-5, abs=1e-6), name


def test_normalised_activations_are_folded_into_the_same_stock_sae(tmp_path: Path) -> None:
    cases = [
        {"normalize_activations": "expected_average_only_in"},
        {"normalize_activations": "expected_average_only_in", "architecture": "gba_transcoder"},
        {"normalize_activations": "covariance_whitening"},
        {"normalize_activations": "covariance_whitening", "tied": True, "activation": "relu"},
    ]
    far = results(fit_beside_one_process, 2, tmp_path / "said", tmp_path, cases)[0]
    assert len(far) == 4
    assert max(far) < 1e-8


@pytest.mark.parametrize(("d_sae", "l0"), [(65536, 64.0), (24576, 32.0), (8191, 48.0)])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_every_rank_has_its_share_of_what_fires(d_sae: int, l0: float, world: int) -> None:
    spectrum = tiny_config(
        d_sae=d_sae, target_l0=l0, n_groups=10, highest_target_frequency=0.2
    ).spectrum()
    share = LatentShare(
        Ranks(0, world, torch.device("cpu"), watch=None),  # type: ignore[arg-type]
        spectrum.group_of_latent(),
    )
    assert torch.equal(torch.cat(share.indices).sort().values, torch.arange(d_sae))
    frequency = spectrum.target_of_latent()
    for index in share.indices:
        assert float(frequency[index].sum()) == pytest.approx(l0 / world, rel=0.02)
        assert len(index) == pytest.approx(d_sae / world, abs=1)


@pytest.mark.parametrize("how", ["normalised", "folded"])
def test_ranks_take_over_an_sae_that_was_folded(how: str, tmp_path: Path) -> None:
    found, *_ = results(train_twice, 2, tmp_path / "said", how)
    assert found["taken over otherwise by"] < 1e-12
    assert found["error after"] < found["error before"]
    assert found["l0"] == pytest.approx(4.0, rel=0.05)
