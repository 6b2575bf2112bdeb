"""What `load` and `list_published` give."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.errors import MissingFileError, NotAGBASAEError
from sae_lens_gba.runs.checkpoints import Checkpoints
from sae_lens_gba.runs.resumable import resumable_run
from sae_lens_gba.saved.loading import list_published, load
from tests.hub_fixtures import (
    D_IN,
    D_SAE,
    HOOK,
    HUB_BEFORE_1,
    REPO,
    WEIGHTS,
    MakeSAE,
    activations,
    contents,
    publish_to,
    trainer,
)
from tests.local_hub import LocalHub
from tests.toolbox import make_trainer, mixture, take_steps, tiny_sae


class Explodes:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


# --- from the Hub ---


def test_the_hub_gives_the_sae_and_all_that_is_known_of_it(published: LocalHub) -> None:
    loaded = load(REPO, "a/jumprelu", endpoint=published.endpoint)
    assert loaded.sae.cfg.architecture() == "jumprelu"
    assert loaded.sae.cfg.metadata.hook_name == HOOK
    assert loaded.training_config is not None
    assert loaded.training_config.target_l0 == 3.0
    assert loaded.log_sparsity is not None
    assert loaded.log_sparsity.shape == (D_SAE,)
    assert loaded.commit == published.repos[REPO].branches["main"]
    assert (loaded.source, loaded.sae_id) == (REPO, "a/jumprelu")
    assert loaded.runner_cfg is None


def test_only_the_files_of_the_wanted_sae_are_downloaded(published: LocalHub) -> None:
    load(REPO, "a/jumprelu", endpoint=published.endpoint)
    assert published.n_requests("GET .*/resolve/.*/b/relu/") == 0
    assert published.n_requests(f"GET .*/resolve/.*/a/jumprelu/{WEIGHTS}") == 1


def test_what_is_cached_is_not_downloaded_again(published: LocalHub) -> None:
    first = load(REPO, "a/jumprelu", endpoint=published.endpoint)
    again = load(REPO, "a/jumprelu", endpoint=published.endpoint)
    assert published.n_requests(f"GET .*/{WEIGHTS}") == 1
    published.requests.clear()
    offline = load(REPO, "a/jumprelu", endpoint=published.endpoint, local_files_only=True)
    assert published.requests == []
    x = activations(8)
    assert torch.equal(first.sae(x), again.sae(x))
    assert torch.equal(first.sae(x), offline.sae(x))


@pytest.mark.skipif(HUB_BEFORE_1, reason="HF_HUB_OFFLINE is read once a process there")
def test_what_is_cached_loads_offline(published: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(REPO, "a/jumprelu", endpoint=published.endpoint)
    published.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(REPO, "a/jumprelu", endpoint=published.endpoint).commit == first.commit
    assert published.requests == []


def test_a_revision_is_a_branch_or_a_commit(published: LocalHub) -> None:
    repo = published.repos[REPO]
    old, files = repo.branches["main"], dict(repo.files())
    del files["a/jumprelu/cfg.json"]
    repo.commit("main", files, "edited")
    with pytest.raises(MissingFileError, match="no SAE 'a/jumprelu' at main"):
        load(REPO, "a/jumprelu", endpoint=published.endpoint)
    assert load(REPO, "a/jumprelu", revision=old, endpoint=published.endpoint).commit == old


def test_a_repo_of_one_sae_needs_no_id_and_one_of_several_says_which_there_are(
    published: LocalHub, jumprelu_sae: GBATrainingSAE
) -> None:
    with pytest.raises(MissingFileError, match=r"several .* \['a/jumprelu', 'b/relu'\]"):
        load(REPO, endpoint=published.endpoint)
    publish_to(published, {"only": jumprelu_sae}, "user/one")
    assert load("user/one", endpoint=published.endpoint).sae_id == "only"


def test_an_sae_at_the_root_of_a_repo_is_loaded(hub: LocalHub, sae_folder: Path) -> None:
    hub.create(REPO).commit("main", contents(sae_folder), "uploaded by hand")
    (listed,) = list_published(REPO, endpoint=hub.endpoint)
    loaded = load(REPO, endpoint=hub.endpoint)
    assert listed.sae_id == loaded.sae_id == "."
    assert torch.equal(loaded.sae.W_dec, load(sae_folder).sae.W_dec)


def test_the_list_of_what_is_published_needs_no_weights(
    published: LocalHub, jumprelu_sae: GBATrainingSAE
) -> None:
    first, second = list_published(REPO, endpoint=published.endpoint)
    assert (first.sae_id, first.architecture) == ("a/jumprelu", "jumprelu")
    assert (second.sae_id, second.architecture) == ("b/relu", "standard")
    assert first.hook_name == HOOK
    assert first.model_name == "user/tiny-model"
    assert first.l0 == pytest.approx(jumprelu_sae.groups().measured_frequency.sum().item())
    assert first.is_gba
    assert published.n_requests("GET .*safetensors") == 0


def test_other_saes_are_listed_but_not_loaded(published: LocalHub) -> None:
    repo = published.repos[REPO]
    cfg = json.loads(repo.files()["a/jumprelu/cfg.json"])
    del cfg["metadata"]["gba"]
    cfg["architecture"] = "topk"
    repo.commit("main", {"other/cfg.json": json.dumps(cfg).encode()}, "other")
    (other,) = list_published(REPO, endpoint=published.endpoint)
    assert not other.is_gba
    with pytest.raises(NotAGBASAEError, match="not trained with GBA"):
        load(REPO, "other", endpoint=published.endpoint)


# --- from folders ---


def test_a_folder_gives_the_same_as_the_hub(
    published: LocalHub, jumprelu_sae: GBATrainingSAE, tmp_path: Path
) -> None:
    jumprelu_sae.save_inference_model(tmp_path / "run")
    local, remote = load(tmp_path / "run"), load(REPO, "a/jumprelu", endpoint=published.endpoint)
    x = activations(8)
    assert torch.equal(local.sae(x), remote.sae(x))
    assert local.commit is None
    (listed,) = list_published(tmp_path / "run")
    assert listed.sae_id == "."


def test_what_a_writer_has_not_finished_is_no_sae(sae_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sae_folder, tmp_path / "several" / "one")
    shutil.copytree(sae_folder, tmp_path / "several" / ".files.1-ab.partial")
    assert load(tmp_path / "several").sae.cfg.d_sae == load(sae_folder).sae.cfg.d_sae


def test_an_sae_that_does_not_say_its_model_is_listed(tmp_path: Path) -> None:
    sae = GBATrainingSAE(GBATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, n_groups=4, target_l0=3.0))
    trainer(sae, 20).fit()
    sae.save_inference_model(tmp_path / "run")
    (listed,) = list_published(tmp_path / "run")
    assert (listed.model_name, listed.hook_name, listed.is_gba) == (None, None, True)


def test_a_checkpoint_gives_a_stock_sae_and_its_pickle_is_not_opened(
    make_sae: MakeSAE, tmp_path: Path
) -> None:
    sae = make_sae(0)
    trainer(sae, 40, save_final_checkpoint=True, checkpoint_path=str(tmp_path)).fit()
    (checkpoint,) = tmp_path.iterdir()
    assert (checkpoint / "trainer_state.pt").is_file()
    (checkpoint / "trainer_state.pt").write_bytes(pickle.dumps(Explodes()))
    (listed,) = list_published(checkpoint)
    assert listed.is_gba
    loaded = load(checkpoint)
    assert loaded.sae.cfg.architecture() == "jumprelu"
    x = activations(8)
    torch.testing.assert_close(loaded.sae(x), sae(x), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_a_run_that_goes_on_has_the_l0_that_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    sae = tiny_sae(l0_warm_up_steps=100, calibration_samples=8192)
    run = make_trainer(sae, 100)
    with resumable_run(tmp_path / "run"):
        take_steps(run, 50)
        # its targets are still 1.25 times those asked for
        checkpoint = Checkpoints(tmp_path / "resume").save(run)
    loaded = load(checkpoint)
    x = torch.cat([next(mixture(7)) for _ in range(20)])
    l0 = float((loaded.sae.encode(x) > 0).sum(dim=1).float().mean())
    assert l0 == pytest.approx(4.0, rel=0.06)
    assert loaded.groups is not None and loaded.groups.other_l0s is not None
    assert "L0 is as the last adaptation left it" not in caplog.text


def test_a_checkpoint_put_on_the_hub_by_hand_gives_what_it_gives_from_its_folder(
    hub: LocalHub, mid_run_checkpoint: Path, tmp_path: Path
) -> None:
    run = make_trainer(tiny_sae(l0_warm_up_steps=100, calibration_samples=8192), 100)
    with resumable_run(tmp_path / "run"):
        take_steps(run, 50)
        of_a_run = Checkpoints(tmp_path / "resume").save(run)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO)
    for checkpoint in (mid_run_checkpoint, of_a_run):
        api.upload_folder(repo_id=REPO, folder_path=checkpoint, path_in_repo=checkpoint.name)
        loaded, local = load(REPO, checkpoint.name, endpoint=hub.endpoint), load(checkpoint)
        x = torch.randn(64, local.sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
        assert torch.equal(loaded.sae(x), local.sae(x))


def test_dtype_and_device_are_as_asked(sae_folder: Path) -> None:
    loaded = load(sae_folder, dtype="bfloat16", device="cpu")
    assert loaded.sae.W_enc.dtype == torch.bfloat16
