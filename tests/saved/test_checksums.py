"""Folders whose files do not belong together are refused, and why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.constants import ACTIVATION_WHITENING_FILENAME

from sae_lens_gba import GBATrainingSAE, load
from sae_lens_gba.checksums import CHECKSUMS_FILENAME, check_checksums, write_checksums
from sae_lens_gba.errors import DamagedFileError, MissingFileError
from sae_lens_gba.hub.preparation import prepare
from sae_lens_gba.sources import load_saes
from tests.toolbox import make_trainer, mixture, randomise, tiny_config

WEIGHTS = "sae_weights.safetensors"


def saved(folder: Path, seed: int, form: str) -> Path:
    torch.manual_seed(seed)
    sae = randomise(GBATrainingSAE(tiny_config()))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    (sae.save_inference_model if form == "stock" else sae.save_model)(folder)
    return folder


@pytest.mark.parametrize("form", ["stock", "checkpoint"])
@pytest.mark.parametrize("name", [WEIGHTS, "cfg.json"])
def test_a_file_of_another_run_is_refused_everywhere(tmp_path: Path, form: str, name: str) -> None:
    a, b = (saved(tmp_path / str(seed), seed, form) for seed in (0, 1))
    load(a)
    if name == "cfg.json":
        text = (b / name).read_text()
        (a / name).write_text(text.replace('"n_groups": 4', '"n_groups": 5'))
    else:
        shutil.copy(b / name, a / name)
    users: list[Callable[[], Any]] = [
        lambda: load(a),
        lambda: load_saes([a]),
        lambda: prepare(a, tmp_path / "work", {}, {}, {}, show_progress=False),
    ]
    for use in users:
        with pytest.raises(ValueError, match=f"{name} is not the file that was saved here"):
            use()
    (a / CHECKSUMS_FILENAME).unlink()  # the remedy of who did it on purpose
    load(a)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("one", "sub/two"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    check_checksums(tmp_path)
    (tmp_path / "new").touch()  # more may come
    check_checksums(tmp_path)
    (tmp_path / "sub" / "two").unlink()
    with pytest.raises(DamagedFileError, match="sub/two is missing"):
        check_checksums(tmp_path)
    check_checksums(tmp_path, ["one"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 1}', '{"sha256": {"a": 1}}'])
def test_damaged_checksums_are_an_error_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / CHECKSUMS_FILENAME).write_text(text)
    with pytest.raises(DamagedFileError, match="is damaged"):
        check_checksums(tmp_path)


@pytest.mark.parametrize(
    ("mode", "lost"),
    [
        ("expected_average_only_in", "activation_scaler.json"),
        ("covariance_whitening", "activation_scaler.json"),
        ("covariance_whitening", ACTIVATION_WHITENING_FILENAME),
    ],
)
def test_a_checkpoint_without_its_normalisation_is_refused(
    tmp_path: Path, mode: str, lost: str
) -> None:
    # as a run that was killed while SAELens wrote its checkpoint leaves it
    trainer = make_trainer(
        GBATrainingSAE(tiny_config(normalize_activations=mode)), 3, mixture(1),
        n_checkpoints=1, checkpoint_path=str(tmp_path),
    )  # fmt: skip
    trainer.fit()
    (checkpoint,) = tmp_path.iterdir()
    load(checkpoint)
    (checkpoint / lost).unlink()
    with pytest.raises(MissingFileError, match=f"normalize_activations='{mode}'"):
        load(checkpoint)


def test_folders_of_plain_saelens_load_as_before(tmp_path: Path) -> None:
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=16, d_sae=32))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.save_inference_model(tmp_path)
    assert not (tmp_path / CHECKSUMS_FILENAME).exists()
    load_saes([tmp_path])
    assert type(SAE.load_from_disk(saved(tmp_path / "ours", 0, "stock"))).__name__ == "JumpReLUSAE"


@pytest.mark.parametrize("name", ["../other", "/proc/kcore", "a/../../other"])
def test_a_list_that_names_files_elsewhere_is_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "other").touch()
    (tmp_path / "sae" / CHECKSUMS_FILENAME).write_text(json.dumps({"sha256": {name: "0"}}))
    with pytest.raises(DamagedFileError, match="is damaged"):
        check_checksums(tmp_path / "sae")
