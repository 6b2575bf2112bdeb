"""Reports of an SAE whose every latent is one word: all numbers can be counted."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import JumpReLUSAE, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.report import Report, ReportConfig
from sae_lens_gba.sources import load_saes
from tests.one_latent_a_word import (
    CONTEXT_SIZE,
    D_MODEL,
    HOOK,
    N_GROUPS,
    N_LATENTS,
    NEVER_USED,
    REPLACED,
    VOCABULARY,
    Collect,
    save_sae,
)


def standard_sae(d_in: int, d_sae: int, hook_name: str = HOOK, **settings: Any) -> StandardSAE:
    metadata = SAEMetadata(model_name="tiny", hook_name=hook_name)
    return StandardSAE(StandardSAEConfig(d_in, d_sae, metadata=metadata, **settings))


def test_frequencies_are_the_words_shares_of_the_text(
    report: Report, model: Any, sae_folders: tuple[Path, Path], texts: Dataset
) -> None:
    sae = load_saes(sae_folders[:1])[0].sae
    store = ActivationsStore.from_sae(model, sae, texts, context_size=CONTEXT_SIZE, total_tokens=1)
    tokens = store.get_batch_tokens(1600 // CONTEXT_SIZE).flatten()
    tokens = tokens[tokens != 0]  # as SAELens cuts the text, without the special one
    share = tokens.bincount(minlength=N_LATENTS) / len(tokens)
    assert report.provenance.n_tokens == len(tokens) < 1600
    measured = torch.tensor(report.saes[0].latents.frequency)
    torch.testing.assert_close(measured, share, atol=1e-5, rtol=1e-3)
    assert report.saes[0].metrics.dead == int((share == 0).sum())
    assert measured[NEVER_USED] == 0


def test_z_score_of_a_latent_that_is_1_or_0_is_that_of_a_coin(report: Report) -> None:
    # pre-activation 1 with probability p, else 0: mean p, variance p (1 - p), 1 where active
    table = report.saes[0].latents
    p = torch.tensor(table.frequency)
    expected = torch.where(p > 0, (1 - p) / (p * (1 - p)).sqrt(), 0.0).nan_to_num()
    torch.testing.assert_close(torch.tensor(table.z_score), expected, atol=0.02, rtol=5e-3)


def test_an_sae_that_rebuilds_its_input_explains_everything(report: Report) -> None:
    metrics = report.saes[0].metrics
    assert metrics.explained_variance == pytest.approx(1, abs=1e-4)
    assert metrics.l0 == 1
    assert metrics.ce_loss_recovered == pytest.approx(1, abs=1e-3)
    assert metrics.ce_loss_with_sae == pytest.approx(metrics.ce_loss_without_sae, abs=1e-3)
    # the same in every place, without knowing where: the model can only guess
    assert metrics.ce_loss_with_ablation == pytest.approx(math.log(N_LATENTS), rel=0.1)
    assert metrics.ce_loss_with_ablation != metrics.ce_loss_with_sae


def test_an_sae_that_lacks_words_explains_less(report: Report) -> None:
    lost = sum(report.saes[0].latents.frequency[latent] for latent in REPLACED)
    assert report.saes[1].metrics.mean_squared_error == pytest.approx(lost, rel=1e-2)  # norm 1
    assert report.saes[1].metrics.explained_variance < 0.95
    assert report.saes[1].metrics.l0 < 1


def test_contexts_show_the_latents_own_word(report: Report) -> None:
    for detail in report.saes[0].details:
        contexts = detail.top + [c for i in detail.intervals for c in i.contexts]
        assert contexts
        for context in contexts:
            word = VOCABULARY[detail.latent]
            assert context.tokens[context.focus] == word
            for token, activation in zip(context.tokens, context.activations, strict=True):
                assert activation == pytest.approx(float(token == word), abs=1e-3)


def test_every_group_is_in_the_sample(report: Report) -> None:
    table = report.saes[0].latents
    assert table.group is not None
    groups = [table.group[detail.latent] for detail in report.saes[0].details]
    assert set(groups) == set(range(N_GROUPS))
    assert min(groups.count(k) for k in range(N_GROUPS)) >= 3


def test_the_logit_lens_promotes_the_word_of_the_direction(report: Report) -> None:
    # the unembedding is the embedding, so a word's direction promotes the word itself
    for detail in report.saes[0].details:
        assert detail.promoted[0].token == VOCABULARY[detail.latent]
        assert detail.promoted[0].weight > 0 > detail.demoted[0].weight


def test_only_what_meets_fires_together(
    report: Report, model: Any, collect: Collect, tmp_path: Path
) -> None:
    assert all(detail.co_firing == [] for detail in report.saes[0].details)
    directions = model.W_E.detach().float().clone()
    directions[7] = directions[2]
    twins = collect(save_sae(tmp_path / "twins", directions), n_latents=None).saes[0]
    found = {d.latent: [o.latent for o in d.co_firing] for d in twins.details if d.co_firing}
    assert found == {2: [7], 7: [2]}


def test_a_cousin_is_no_feature_that_only_one_has(
    model: Any, collect: Collect, sae_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    directions = model.W_E.detach().float().clone()
    directions[2] = 0.7 * directions[2] + 0.51**0.5 * directions[NEVER_USED]
    directions[3] = 0.3 * directions[3] + 0.91**0.5 * directions[NEVER_USED]
    changed = save_sae(tmp_path / "changed", directions)
    sae = JumpReLUSAE.load_from_disk(changed)
    sae.threshold.data.fill_(0.25)  # so that both fire on their words
    sae.save_model(changed)
    comparison = collect(sae_folders[0], changed, n_tokens=1600).comparisons[0]
    assert comparison.only_first == [3]


def test_a_reordered_copy_is_matched_latent_by_latent(report: Report) -> None:
    table = report.saes[0].latents
    for latent in range(N_LATENTS):
        if table.frequency[latent] > 0 and latent not in REPLACED:
            assert table.best_match["second"][latent] == N_LATENTS - 1 - latent
            assert table.best_match_cosine["second"][latent] == pytest.approx(1, abs=1e-3)
    (comparison,) = report.comparisons
    assert comparison.pairs
    assert all(p.other_latent == N_LATENTS - 1 - p.latent for p in comparison.pairs)
    n_alive = N_LATENTS - report.saes[0].metrics.dead
    expected = (n_alive - len(REPLACED)) / n_alive
    assert comparison.share_above == pytest.approx(expected, abs=1e-3)


def test_both_sides_of_a_matched_pair_have_the_same_contexts(report: Report) -> None:
    first, second = report.saes
    for pair in report.comparisons[0].pairs:
        mine, other = first.detail(pair.latent), second.detail(pair.other_latent)
        assert mine is not None
        assert other is not None
        words = {c.tokens[c.focus] for c in mine.top + other.top}
        assert words == {VOCABULARY[pair.latent]}


def test_features_that_only_one_has_are_the_ones_taken_away(report: Report) -> None:
    comparison = report.comparisons[0]
    assert set(comparison.only_first) <= set(REPLACED)
    assert comparison.only_first
    # the random directions instead of them never fire, so the other has nothing of its own
    assert comparison.only_other == []
    assert comparison.n_only_other == 0


def test_the_same_seed_gives_the_same_report(
    report: Report, sae_folders: tuple[Path, Path], collect: Collect
) -> None:
    again = collect(*sae_folders, n_tokens=1600, n_latents=20, ce_tokens=320)
    assert replace(again, provenance=report.provenance) == report


def test_the_loss_of_saes_with_other_contexts_is_on_the_same_tokens(
    model: Any, collect: Collect, tmp_path: Path
) -> None:
    directions = model.W_E.detach().float()
    longer = {"context_size": 2 * CONTEXT_SIZE, "prepend_bos": False}
    folders = save_sae(tmp_path / "a", directions), save_sae(tmp_path / "b", directions, **longer)
    first, second = collect(*folders, ce_tokens=256).saes
    assert first.metrics.ce_loss_without_sae == second.metrics.ce_loss_without_sae
    assert first.metrics.ce_loss_recovered == second.metrics.ce_loss_recovered


def test_a_text_that_ends_early_is_read_once(
    sae_folders: tuple[Path, Path], collect: Collect, texts: Dataset
) -> None:
    short = texts.select(range(4))  # 4 x 30 words: 7 sequences of 15 and a special token
    result = collect(sae_folders[0], text=short, n_tokens=10**6)
    assert 90 <= result.provenance.n_tokens <= 120
    assert result.saes[0].metrics.ce_loss_recovered is None
    assert any("CE loss" in note for note in result.saes[0].notes)


def test_a_text_shorter_than_a_sequence_is_refused(
    sae_folders: tuple[Path, Path], collect: Collect
) -> None:
    with pytest.raises(ValueError, match="shorter than one sequence of 16 tokens"):
        collect(sae_folders[0], text=Dataset.from_dict({"text": ["word1"]}))


def test_a_stock_sae_without_groups_or_context_size_is_shown(
    tmp_path: Path, collect: Collect
) -> None:
    torch.manual_seed(3)
    standard_sae(D_MODEL, 40, hook_name="blocks.0.hook_resid_post").save_model(tmp_path / "stock")
    with pytest.raises(ValueError, match=r"context_size.*--context-size"):
        collect(tmp_path / "stock")
    result = collect(tmp_path / "stock", n_latents=8, context_size=CONTEXT_SIZE).saes[0]
    assert result.latents.group is None
    assert result.metrics.l0_asked is None
    assert 1 <= len(result.details) <= 8
    assert result.metrics.l0 > 1
    assert 0 < result.latents.z_score[result.details[0].latent] < 10
    assert any(detail.co_firing for detail in result.details)
    strengths = [c.activations[c.focus] for c in result.details[0].top]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] == pytest.approx(
        result.latents.max_activation[result.details[0].latent], rel=1e-3
    )


def test_latents_that_were_asked_for_are_shown_even_if_dead(
    sae_folders: tuple[Path, Path], collect: Collect
) -> None:
    result = collect(sae_folders[0], latents=(NEVER_USED, 5)).saes[0]
    dead = result.detail(NEVER_USED)
    assert dead is not None
    assert dead.top == []
    assert dead.intervals == []
    assert result.detail(5) is not None


def test_a_training_checkpoint_of_gba_is_shown_with_its_groups(
    tmp_path: Path, collect: Collect
) -> None:
    torch.manual_seed(0)
    cfg = GBATrainingSAEConfig(d_in=D_MODEL, d_sae=32, n_groups=2, target_l0=4.0)
    cfg.metadata.hook_name, cfg.metadata.model_name = HOOK, "tiny"
    sae = GBATrainingSAE(cfg)
    with torch.no_grad():
        sae.output_scale.copy_(torch.rand(32) + 0.5)
    sae.save_model(tmp_path / "checkpoint")
    table = collect(tmp_path / "checkpoint", context_size=CONTEXT_SIZE).saes[0].latents
    assert set(table.group or []) == {0, 1}
    # rows have unit norm, the output scale is apart
    torch.testing.assert_close(
        torch.tensor(table.decoder_norm), sae.output_scale.data, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "value"), [("n_tokens", 0), ("n_latents", 0), ("ce_tokens", -1), ("context_size", 1)]
)
def test_impossible_settings_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        ReportConfig(**{name: value})  # type: ignore[arg-type]


def test_a_latent_that_is_not_there_is_named(
    sae_folders: tuple[Path, Path], collect: Collect
) -> None:
    with pytest.raises(ValueError, match=f"latents={N_LATENTS} .* has {N_LATENTS}"):
        collect(sae_folders[0], latents=(N_LATENTS,))


def test_an_sae_of_another_model_is_refused(tmp_path: Path, collect: Collect) -> None:
    other = save_sae(tmp_path / "wide", torch.eye(60))
    with pytest.raises(ValueError, match=r"d_in=60 .*--model"):
        collect(other)
    hook = save_sae(tmp_path / "hook", torch.eye(D_MODEL), hook_name="blocks.9.hook_resid_post")
    with pytest.raises(ValueError, match=r"hook_name=blocks.9.hook_resid_post .*--model"):
        collect(hook)


def test_what_a_full_device_says_is_passed_on(
    collect: Collect, sae_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(
        "sae_lens.training.activations_store.ActivationsStore.get_activations", full
    )
    with pytest.raises(ValueError, match=r"CUDA out of memory.*--context-size"):
        collect(sae_folders[0])


def test_saes_of_different_width_or_model_are_not_compared(
    tmp_path: Path, collect: Collect, sae_folders: tuple[Path, Path]
) -> None:
    wide = save_sae(tmp_path / "wide", torch.eye(60))
    with pytest.raises(ValueError, match="wide has d_in=60"):
        collect(sae_folders[0], wide)
    other = save_sae(tmp_path / "other", torch.eye(D_MODEL), model_name="gpt2")
    with pytest.raises(ValueError, match="different models"):
        load_saes([sae_folders[0], other])


def test_a_models_folder_and_its_name_are_the_same_model(tmp_path: Path) -> None:
    other = tmp_path / "models" / "SmolLM2-135M"
    names = ["HuggingFaceTB/SmolLM2-135M", str(other), "smollm2-135m", f"{other}/"]
    folders = [
        save_sae(tmp_path / str(i), torch.eye(D_MODEL), model_name=name)
        for i, name in enumerate(names)
    ]
    assert len(load_saes(folders)) == 4
    copied = tmp_path / "my copy"
    copied.mkdir()
    (copied / "config.json").write_text('{"_name_or_path": "HuggingFaceTB/SmolLM2-135M"}')
    copy = save_sae(tmp_path / "copy", torch.eye(D_MODEL), model_name=str(copied))
    assert len(load_saes([folders[0], copy])) == 2


def test_folders_of_the_same_name_get_different_labels(tmp_path: Path) -> None:
    folders = [save_sae(tmp_path / str(i) / "sae", torch.eye(D_MODEL)) for i in range(3)]
    assert [s.label for s in load_saes(folders)] == ["sae", "sae (2)", "sae (3)"]


def test_a_folder_without_an_sae_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no SAE .*cfg.json"):
        load_saes([tmp_path])


def test_a_checkpoint_that_lost_the_scale_of_its_inputs_is_refused(tmp_path: Path) -> None:
    sae = standard_sae(4, 8, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path)
    with pytest.raises(ValueError, match=r"activation_scaler.json is missing: give the folder"):
        load_saes([tmp_path])
