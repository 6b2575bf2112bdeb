"""Random directions are as active as the SAE, and worse: the report shows by how much."""

from pathlib import Path

import pytest
import torch
from sae_lens import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_gba.report.random_baseline import LABEL, random_directions
from sae_lens_gba.saved.saved_sae import SavedSAE
from sae_lens_gba.sources import load_saes
from tests.one_latent_a_word import D_MODEL, Collect


@torch.no_grad()
def test_random_directions_fire_as_often_and_rebuild_best_for_their_directions(
    sae_folders: tuple[Path, Path],
) -> None:
    (saved,) = load_saes(sae_folders[:1])
    words = torch.randint(2, D_MODEL, (4000,))
    x = saved.decoder_rows[words] + 0.1 * torch.randn(4000, D_MODEL)
    baseline = random_directions(saved, x, seed=1)
    acts, own = baseline.sae.encode(x), saved.sae.encode(x)
    assert float((acts > 0).sum()) == pytest.approx(float((own > 0).sum()), rel=0.01)
    residual = x - baseline.sae.decode(acts)
    output = baseline.sae.decode(acts) - baseline.sae.b_dec
    # least squares: the residual has nothing left in the direction of the output
    assert float((residual * output).sum()) == pytest.approx(
        0, abs=1e-3 * float(output.norm() ** 2)
    )
    assert float(output.norm()) > 0
    again = random_directions(saved, x, seed=1)
    assert torch.equal(again.decoder_rows, baseline.decoder_rows)
    assert not torch.equal(random_directions(saved, x, seed=2).decoder_rows, baseline.decoder_rows)


def test_the_report_compares_with_them(sae_folders: tuple[Path, Path], collect: Collect) -> None:
    report = collect(sae_folders[0], n_tokens=1600, random_baseline=True)
    first, baseline = report.saes
    assert baseline.label == LABEL
    assert baseline.architecture == "untrained (saved as jumprelu)"
    assert baseline.metrics.l0 == pytest.approx(first.metrics.l0, rel=0.05)
    assert baseline.metrics.explained_variance < 0.5 < first.metrics.explained_variance
    # what the best of 48 random directions in 48 dimensions reach
    assert 0.2 < report.comparisons[0].mean_cosine < 0.5
    assert report.comparisons[0].share_above == 0


def test_activations_with_signs_count_as_active_whatever_the_sign() -> None:
    torch.manual_seed(0)
    sae = AbsTopKSAE(AbsTopKSAEConfig(D_MODEL, 96, k=8, metadata=SAEMetadata(hook_name="h")))
    torch.nn.init.normal_(sae.W_enc)
    x = torch.randn(4000, D_MODEL)
    baseline = random_directions(SavedSAE(sae, sae.cfg.to_dict()), x, seed=1)
    assert float((baseline.sae.encode(x) > 0).sum()) / 4000 == pytest.approx(8, rel=0.02)
