"""What `publish` sends."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

from sae_lens_gba import BiasAdaptationHook, GBATrainingSAE
from sae_lens_gba.errors import AccessError, InvalidPublicationError, PublishError
from sae_lens_gba.saved.loading import load
from tests.hub_fixtures import (
    D_IN,
    D_SAE,
    GROUPS,
    HOOK,
    REPO,
    WEIGHTS,
    MakeSAE,
    activations,
    contents,
    publish_to,
)
from tests.local_hub import LocalHub

DEFAULT_ID = f"{HOOK}/l0_3/width_{D_SAE}"
OF_EACH_SAE = ("cfg.json", WEIGHTS, GROUPS, "frequencies.png")


@pytest.mark.usefixtures("with_plots")
def test_several_saes_their_groups_and_the_card_go_in_one_commit(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, sae_folder: Path
) -> None:
    result = publish_to(hub, {"seed_0": jumprelu_sae, "layers/1": sae_folder})
    assert hub.repos[REPO].titles == ["initial commit", "Publish 2 SAEs"]
    assert hub.n_requests("POST .*/commit/") == 1
    files = hub.repos[REPO].files()
    assert set(files) == {
        ".gitattributes",
        "README.md",
        *(f"{i}/{name}" for i in ("seed_0", "layers/1") for name in OF_EACH_SAE),
        "seed_0/sparsity.safetensors",
    }
    assert {name: len(content) for name, content in files.items() if name[0] != "."} == result.files
    assert result.changed
    assert result.commit_oid == hub.repos[REPO].branches["main"]


@pytest.mark.usefixtures("with_plots")
def test_publishing_the_same_again_makes_no_commit(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, caplog: pytest.LogCaptureFixture
) -> None:
    first = publish_to(hub, jumprelu_sae)
    assert first.sae_ids == (DEFAULT_ID,)
    before = hub.snapshot()
    second = publish_to(hub, jumprelu_sae)
    assert hub.snapshot() == before
    assert hub.repos[REPO].titles == ["initial commit", f"Publish {DEFAULT_ID}"]
    assert first.changed
    assert not second.changed
    assert second.commit_oid == first.commit_oid
    assert "no commit was made" in second.summary()
    assert "are replaced" not in caplog.text
    publish_to(hub, {DEFAULT_ID: jumprelu_sae}, metadata={"dataset_path": "another/set"})
    assert f"{DEFAULT_ID} is in {REPO} already, and its files are replaced" in caplog.text


@pytest.mark.usefixtures("with_plots")
def test_a_later_publication_keeps_earlier_saes_in_repo_and_card(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, relu_sae: GBATrainingSAE
) -> None:
    publish_to(hub, {"first": jumprelu_sae})
    result = publish_to(hub, {"second": relu_sae})
    assert {"first/cfg.json", "second/cfg.json"} <= set(hub.repos[REPO].files())
    for sae_id in ("first", "second"):
        assert f"| `{sae_id}` |" in result.card
        assert f"]({sae_id}/frequencies.png)" in result.card


def test_a_file_that_the_new_version_of_an_sae_lacks_is_removed(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, sae_folder: Path
) -> None:
    publish_to(hub, {"sae": jumprelu_sae})
    assert "sae/sparsity.safetensors" in hub.repos[REPO].files()
    publish_to(hub, {"sae": sae_folder})  # has no sparsity file
    assert "sae/sparsity.safetensors" not in hub.repos[REPO].files()


def test_private_and_branch_are_as_asked(hub: LocalHub, jumprelu_sae: GBATrainingSAE) -> None:
    publish_to(hub, jumprelu_sae, private=True, revision="v2")
    repo = hub.repos[REPO]
    assert repo.private
    assert set(repo.files("main")) == {".gitattributes"}
    assert f"{DEFAULT_ID}/cfg.json" in repo.files("v2")
    loaded = load(REPO, DEFAULT_ID, revision="v2", endpoint=hub.endpoint, token=hub.token)
    assert loaded.commit == repo.branches["v2"]


def test_a_pull_request_leaves_main_alone(hub: LocalHub, jumprelu_sae: GBATrainingSAE) -> None:
    hub.create(REPO)
    main = hub.repos[REPO].files()
    result = publish_to(hub, jumprelu_sae, create_pr=True)
    assert hub.repos[REPO].files() == main
    assert f"{DEFAULT_ID}/cfg.json" in hub.repos[REPO].files("refs/pr/1")
    assert result.pull_request_url == f"{hub.endpoint}/{REPO}/discussions/1"


def test_a_private_publication_is_not_put_into_a_public_repo(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE
) -> None:
    hub.create(REPO)
    before = hub.snapshot()
    with pytest.raises(PublishError, match="is public, but private=True: make it private"):
        publish_to(hub, jumprelu_sae, private=True)
    assert hub.snapshot() == before


def test_a_pull_request_needs_a_repo(hub: LocalHub, jumprelu_sae: GBATrainingSAE) -> None:
    with pytest.raises(PublishError, match="nothing to open a pull request against"):
        publish_to(hub, jumprelu_sae, create_pr=True)
    assert hub.repos == {}


@pytest.mark.usefixtures("with_plots")
def test_a_dry_run_sends_nothing_and_writes_exactly_what_is_then_published(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, tmp_path: Path
) -> None:
    result = publish_to(hub, jumprelu_sae, dry_run=True, folder=tmp_path / "out")
    assert hub.requests == []
    assert result.folder == tmp_path / "out"
    written = {name: len(content) for name, content in contents(tmp_path / "out").items()}
    assert written == result.files
    assert "dry run, nothing was sent" in result.summary()
    assert all(name in result.summary() for name in written)
    assert load(tmp_path / "out", DEFAULT_ID).sae.cfg.d_in == D_IN
    publish_to(hub, jumprelu_sae)
    published = hub.repos[REPO].files()
    del published[".gitattributes"]
    assert contents(tmp_path / "out") == published


@pytest.mark.parametrize("existed", [True, False])
def test_a_failed_attempt_leaves_the_folder_as_it_was(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, sae_folder: Path, tmp_path: Path, existed: bool
) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    (sae_folder / "sae_weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(InvalidPublicationError):
        publish_to(hub, {"good": jumprelu_sae, "bad": sae_folder}, folder=out)
    with pytest.raises(AccessError):
        publish_to(hub, jumprelu_sae, folder=out, token="wrong")
    assert out.exists() == existed
    publish_to(hub, jumprelu_sae, folder=out)
    assert (out / DEFAULT_ID / "cfg.json").is_file()


def test_a_checkpoint_is_published_with_its_activation_scale_folded_in(
    hub: LocalHub, mid_run_checkpoint: Path
) -> None:
    scale = json.loads((mid_run_checkpoint / "activation_scaler.json").read_text())[
        "scaling_factor"
    ]
    assert scale != 1.0
    runner_cfg = {"lr": 3e-4, "training_tokens": 1_000_000}  # it had some of them
    (mid_run_checkpoint / "runner_cfg.json").write_text(json.dumps(runner_cfg))
    card = publish_to(hub, {"sae": mid_run_checkpoint}).card
    assert "| lr | `0.0003` |" in card and "training_tokens" not in card
    assert "sae/trainer_state.pt" not in hub.repos[REPO].files()
    assert "sae/sparsity.safetensors" in hub.repos[REPO].files()

    unfolded = GBATrainingSAE.load_from_disk(mid_run_checkpoint)
    x = activations(32, seed=5)
    loaded = load(REPO, endpoint=hub.endpoint).sae
    torch.testing.assert_close(loaded.encode(x), unfolded.encode(x * scale), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded(x), unfolded(x * scale) / scale, rtol=1e-4, atol=1e-4)


def test_an_sae_trained_with_the_hook_is_published_with_its_groups(
    hub: LocalHub, tmp_path: Path
) -> None:
    cfg = StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=0.0)
    cfg.metadata.model_name, cfg.metadata.hook_name = "user/tiny-model", HOOK
    sae = StandardTrainingSAE(cfg)
    hook = BiasAdaptationHook.attach(sae, n_groups=4, target_l0=3.0)
    sae.save_inference_model(tmp_path / "run")
    hook.groups().save(tmp_path / "run")
    publish_to(hub, {"hooked": tmp_path / "run"})
    loaded = load(REPO, endpoint=hub.endpoint)
    assert loaded.training_config is None
    assert loaded.groups is not None
    assert torch.equal(loaded.groups.target_frequency, hook.groups().target_frequency)
    assert loaded.to_training_sae().cfg.n_groups == 4


def test_a_bfloat16_sae_keeps_its_dtype(hub: LocalHub, make_sae: MakeSAE) -> None:
    sae = make_sae(0, dtype="bfloat16")
    result = publish_to(hub, {"sae": sae})
    assert load(REPO, endpoint=hub.endpoint).sae.W_dec.dtype == torch.bfloat16
    assert '"sae", dtype="bfloat16")' in result.card


def test_where_the_run_was_on_this_machine_is_not_published(
    hub: LocalHub, sae_folder: Path
) -> None:
    runner_cfg = {
        "output_path": "/home/me/run",
        "checkpoint_path": "/home/me/checkpoints",
        "training_tokens": 1_000_000,
        "train_batch_size_tokens": 4096,
        "lr": 3e-4,
        "lr_end": 3e-5,
        "lr_scheduler_name": "cosineannealing",
        "lr_warm_up_steps": 100,
        "lr_decay_steps": 0,
        "seed": 7,
        "sequence_separator_token": "bos",
    }
    (sae_folder / "runner_cfg.json").write_text(json.dumps(runner_cfg))
    card = publish_to(hub, {"sae": sae_folder}).card
    shown = set(runner_cfg) - {"output_path", "checkpoint_path", "sequence_separator_token"}
    for name in shown:  # of the run, what others may want to know
        assert f"| {name} | `{runner_cfg[name]}` |" in card
    published = json.loads(hub.repos[REPO].files()["sae/runner_cfg.json"])
    assert published == {**runner_cfg, "output_path": None, "checkpoint_path": None}


def test_the_source_folder_is_left_as_it_was(hub: LocalHub, sae_folder: Path) -> None:
    before = contents(sae_folder)
    publish_to(hub, sae_folder, metadata={"model_name": "other/model"})
    assert contents(sae_folder) == before


def test_the_release_entry_is_one_that_saelens_directory_reads(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.loading import pretrained_saes_directory as directory

    result = publish_to(
        hub,
        {"a/b": jumprelu_sae},
        neuronpedia_ids={"a/b": "tiny-model/1-gba-res"},
        evaluations={"a/b": {"explained_variance": 0.71239}},
    )
    assert result.release_entry is not None
    (tmp_path / "pretrained_saes.yaml").write_text(result.release_entry)
    monkeypatch.setattr(directory, "files", lambda _: tmp_path)
    entry = directory.get_pretrained_saes_directory.__wrapped__()["tiny-gba-saes"]
    assert (entry.repo_id, entry.model) == (REPO, "user/tiny-model")
    assert entry.saes_map == {"a/b": "a/b"}
    assert entry.neuronpedia_id == {"a/b": "tiny-model/1-gba-res"}
    assert entry.expected_var_explained == {"a/b": 0.7124}
    measured = jumprelu_sae.groups().measured_frequency.sum().item()
    assert entry.expected_l0["a/b"] == pytest.approx(measured, abs=1e-4)
    published = yaml.safe_load(hub.repos[REPO].files()["a/b/cfg.json"])
    assert published["metadata"]["neuronpedia_id"] == "tiny-model/1-gba-res"


def test_without_matplotlib_all_but_the_plot_is_published(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, caplog: pytest.LogCaptureFixture
) -> None:
    result = publish_to(hub, {"sae": jumprelu_sae})
    assert "sae/frequencies.png" not in hub.repos[REPO].files()
    assert "![" not in result.card
    assert "pip install 'sae-lens-gba[plots]'" in caplog.text


@pytest.mark.parametrize("broken", ["{", '{"metadata": {"gba": {"groups": [{"size": 3}]}}}'])
def test_a_broken_sae_of_others_in_the_repo_is_left_out_of_the_card(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    hub.create(REPO).commit("main", {"other/cfg.json": broken.encode()}, "broken")
    assert "`other`" not in publish_to(hub, {"sae": jumprelu_sae}).card
    assert "the card leaves out other" in caplog.text
