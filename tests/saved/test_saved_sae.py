"""The stock form in memory, and SAEs of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME

from sae_lens_gba import GBATrainingSAE, load
from sae_lens_gba.checksums import check_checksums
from sae_lens_gba.errors import DamagedFileError
from sae_lens_gba.saved.saved_sae import as_saved, read_saved
from sae_lens_gba.saved.stock_form import stock_form
from tests.hub_fixtures import D_IN, D_SAE, HOOK, activations, trainer


def of_others(kind: str, **settings: Any) -> TrainingSAE[Any]:
    sparsity: dict[str, Any] = {"k": 3} if kind == "batchtopk" else {"l1_coefficient": 0.01}
    cfg = {"architecture": kind, "d_in": D_IN, "d_sae": D_SAE, **sparsity, **settings}
    sae: TrainingSAE[Any] = TrainingSAE.from_dict(cfg)
    sae.cfg.metadata.hook_name = HOOK
    return sae


def test_the_stock_form_is_what_saving_and_loading_gives(
    jumprelu_sae: GBATrainingSAE, relu_sae: GBATrainingSAE, tmp_path: Path
) -> None:
    x = activations(16)
    for i, training_sae in enumerate((jumprelu_sae, relu_sae, of_others("batchtopk"))):
        training_sae.save_inference_model(tmp_path / str(i))
        loaded: SAE[Any] = SAE.load_from_disk(tmp_path / str(i))
        stock = stock_form(training_sae)
        assert stock.cfg.to_dict() == loaded.cfg.to_dict()
        assert torch.equal(stock(x), loaded(x))


def test_a_saved_sae_is_written_as_it_was_read(sae_folder: Path, tmp_path: Path) -> None:
    first = read_saved(sae_folder, label="mine")
    assert (first.label, first.hook_name, first.d_sae) == ("mine", HOOK, D_SAE)
    first.save(str(tmp_path / "copy"))
    first.cfg["metadata"]["note"] = "mine"
    first.save(tmp_path / "copy")  # over it
    again = read_saved(tmp_path / "copy")
    assert (again.label, again.cfg) == ("copy", first.cfg)
    assert first.threshold is not None
    assert again.threshold is not None
    assert torch.equal(again.threshold, first.threshold)
    check_checksums(tmp_path / "copy")
    weights = tmp_path / "copy" / SAE_WEIGHTS_FILENAME
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match="is not the file that was saved here"):
        read_saved(tmp_path / "copy")
    assert torch.equal(again.decoder_rows, first.decoder_rows)


@pytest.mark.parametrize("kind", ["batchtopk", "standard"])
def test_a_checkpoint_of_others_is_read_with_its_scale_folded_in(kind: str, tmp_path: Path) -> None:
    sae = of_others(kind, normalize_activations="expected_average_only_in")
    trainer(sae, 20, n_checkpoints=1, checkpoint_path=str(tmp_path)).fit()
    (checkpoint,) = tmp_path.iterdir()
    finished: TrainingSAE[Any] = TrainingSAE.load_from_disk(checkpoint)
    run = trainer(finished, 20)
    run.activation_scaler.load(checkpoint / "activation_scaler.json")
    finished.fold_activation_norm_scaling_factor(run.activation_scaler.scaling_factor or 0)
    saved = read_saved(checkpoint, groups_required=False)
    assert (saved.groups, saved.training_config) == (None, None)
    assert saved.cfg["normalize_activations"] == saved.sae.cfg.normalize_activations == "none"
    x = activations(16)
    torch.testing.assert_close(saved.sae(x), as_saved(finished).sae(x), rtol=1e-5, atol=1e-6)
    saved.save(checkpoint)  # in its place: the scale is not folded in once more
    assert torch.equal(read_saved(checkpoint, groups_required=False).sae(x), saved.sae(x))


def test_what_it_says_is_what_it_is(sae_folder: Path, tmp_path: Path) -> None:
    saved = load(sae_folder, dtype="bfloat16")
    replace(saved, log_sparsity=torch.zeros(D_SAE)).save(tmp_path)
    assert SAE.load_from_disk(tmp_path).cfg.dtype == "bfloat16"
    assert (tmp_path / "sparsity.safetensors").exists()
    saved.save(tmp_path)
    assert not (tmp_path / "sparsity.safetensors").exists()


def test_an_architecture_that_nobody_registered_is_named(sae_folder: Path) -> None:
    (sae_folder / "gba_groups.safetensors").unlink()
    (sae_folder / "cfg.json").write_text('{"architecture": "resonator"}')
    with pytest.raises(DamagedFileError, match="architecture='resonator', which this SAELens"):
        read_saved(sae_folder, groups_required=False)


def test_the_home_folder_may_be_named_by_its_sign(
    sae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    load(sae_folder).save("~/sae")
    assert (tmp_path / "sae" / "cfg.json").is_file()
    assert not (tmp_path / "~").exists()
    assert load("~/sae").groups is not None
