import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba.synthetic import (
    FeatureMixture,
    FeatureMixtureConfig,
    geometric_relative_frequencies,
)


def test_rows_are_x_equal_h_times_v() -> None:
    for unit_norm_inputs in (False, True):
        mixture = FeatureMixture(FeatureMixtureConfig(unit_norm_inputs=unit_norm_inputs))
        X, H = mixture.sample(100)
        torch.testing.assert_close(X, H @ mixture.features)
        assert (H >= 0).all()


def test_every_row_has_exactly_one_of_the_sparsities_equally_often() -> None:
    _, H = FeatureMixture(FeatureMixtureConfig(sparsities=(3, 20))).sample(4000)
    active = (H > 0).sum(dim=1)
    assert set(active.tolist()) == {3, 20}
    # 4000 fair coins: 5 standard deviations are 5 * 0.5 / sqrt(4000) = 0.04
    assert float((active == 3).float().mean()) == pytest.approx(0.5, abs=0.04)


def test_features_occur_as_often_as_asked() -> None:
    cfg = FeatureMixtureConfig(
        n_features=8,
        d_in=4,
        sparsities=(1, 3),
        relative_frequencies=geometric_relative_frequencies(8, 6.0),
    )
    _, H = FeatureMixture(cfg, seed=1).sample(20_000)
    measured = (H > 0).float().mean(dim=0)
    # 5 standard deviations of a share: 5 * 0.5 / sqrt(20000) = 0.018
    torch.testing.assert_close(measured, cfg.feature_frequencies(), atol=0.018, rtol=0)
    assert float(cfg.feature_frequencies().sum()) == pytest.approx(2.0)
    assert float(measured[0] / measured[-1]) > 4


def test_every_pair_of_features_occurs_together_when_all_are_equally_frequent() -> None:
    # of C(5, 2) = 10 pairs each is 1/10 of the rows; 5 sd = 5 * 0.3 / sqrt(20000) = 0.011
    cfg = FeatureMixtureConfig(n_features=5, d_in=3, sparsities=(2,))
    _, H = FeatureMixture(cfg).sample(20_000)
    together = (H > 0).float().T @ (H > 0).float() / 20_000
    off_diagonal = together[~torch.eye(5, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full((20,), 0.1), atol=0.011, rtol=0)


@pytest.mark.parametrize(("row_scale", "p"), [("l1", 1), ("l2", 2)])
def test_rows_of_h_have_the_norm_asked_for(row_scale: str, p: int) -> None:
    cfg = FeatureMixtureConfig(row_scale=row_scale)  # type: ignore[arg-type]
    _, H = FeatureMixture(cfg).sample(100)
    torch.testing.assert_close(H.norm(p=p, dim=1), torch.ones(100))


def test_unit_norm_holds_where_it_is_asked_for() -> None:
    X, _ = FeatureMixture(FeatureMixtureConfig(unit_norm_inputs=True)).sample(50)
    torch.testing.assert_close(X.norm(dim=1), torch.ones(50))
    unit = FeatureMixture(FeatureMixtureConfig()).features.norm(dim=1)
    torch.testing.assert_close(unit, torch.ones(128))


def test_one_seed_gives_one_stream_whatever_else_draws_numbers() -> None:
    cfg = FeatureMixtureConfig()
    one, other = FeatureMixture(cfg, seed=3), FeatureMixture(cfg, seed=3)
    first = next(one)
    torch.manual_seed(99)
    assert torch.equal(first, next(other))
    assert not torch.equal(first, next(other))
    assert not torch.equal(one.features, FeatureMixture(cfg, seed=4).features)


def test_held_out_rows_have_the_same_features_and_are_new() -> None:
    mixture = FeatureMixture(FeatureMixtureConfig(), batch_size=16)
    held_out = mixture.held_out()
    assert torch.equal(held_out.features, mixture.features)
    assert not torch.equal(next(held_out), next(mixture))


def test_it_feeds_the_hosts_trainer() -> None:
    mixture = FeatureMixture(FeatureMixtureConfig(), batch_size=64)
    sae = TrainingSAE.from_dict({"architecture": "topk", "d_in": 42, "d_sae": 64, "k": 4})
    cfg = SAETrainerConfig(
        total_training_samples=64 * 200, train_batch_size_samples=64, lr=1e-2, lr_end=1e-2
    )
    X, _ = mixture.held_out().sample(500)
    before = float((sae(X) - X).square().sum().detach())
    SAETrainer(cfg, sae, mixture).fit()
    assert float((sae(X) - X).square().sum().detach()) < 0.5 * before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sparsities": ()}, "sparsities"),
        ({"sparsities": (0,)}, "at least 1"),
        ({"n_features": 4, "sparsities": (5,)}, "lower the sparsity"),
        ({"n_features": 2, "relative_frequencies": (1.0,)}, "2 positive numbers"),
        ({"n_features": 2, "sparsities": (1,), "relative_frequencies": (1.0, 0.0)}, "positive"),
        ({"n_features": 2, "sparsities": (2,), "relative_frequencies": (3.0, 1.0)}, "more even"),
    ],
)
def test_impossible_mixtures_are_refused_with_a_remedy(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureMixtureConfig(**wrong)  # type: ignore[arg-type]
