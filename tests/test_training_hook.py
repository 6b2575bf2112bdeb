import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)

from sae_lens_gba import BiasAdaptationHook
from tests.toolbox import make_trainer, mixture, take_steps, tiny_sae

SETTINGS = {
    "target_l0": 4.0,
    "n_groups": 4,
    "highest_target_frequency": 0.3,
    "adapt_every_n_steps": 5,
    "bias_decrease_rate": 0.1,
}
CONFIGS = {
    "standard": StandardTrainingSAEConfig(16, 64, l1_coefficient=0.0, decoder_init_norm=1.0),
    "jumprelu": JumpReLUTrainingSAEConfig(16, 64, l0_coefficient=0.0, decoder_init_norm=1.0),
}
PARAMETER = {"standard": "b_enc", "jumprelu": "threshold"}
BOTH = pytest.mark.parametrize("architecture", sorted(CONFIGS))


def new_sae(architecture: str) -> TrainingSAE[Any]:
    return TrainingSAE.from_dict(CONFIGS[architecture].to_dict())


def l0(sae: Any) -> float:
    return float((sae.encode(next(mixture(9, batch=4000))) > 0).float().sum(1).mean())


@BOTH
def test_it_takes_over_the_bias_and_gives_it_back(architecture: str) -> None:
    sae = new_sae(architecture)
    before = {name for name, _ in sae.named_parameters() if _.requires_grad}
    parameter = getattr(sae, PARAMETER[architecture])
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    start = parameter.detach().clone()
    trainer = make_trainer(sae, 20)
    take_steps(trainer, 4)
    assert torch.equal(parameter, start)  # no gradient, no adaptation yet
    take_steps(trainer, 1)
    assert not torch.equal(parameter, start)
    assert parameter.grad is None
    hook.remove()
    moved = parameter.detach().clone()
    assert {name for name, p in sae.named_parameters() if p.requires_grad} == before
    assert not sae.hook_sae_acts_pre._forward_hooks
    assert not sae.hook_sae_input._forward_hooks
    take_steps(trainer, 3)
    assert not torch.equal(parameter, moved)  # the optimizer's again


@BOTH
def test_it_holds_the_target_l0(architecture: str) -> None:
    sae = new_sae(architecture)
    BiasAdaptationHook.attach(sae, **SETTINGS)
    take_steps(make_trainer(sae, 600), 600)
    assert l0(sae) == pytest.approx(4.0, rel=0.15)


def test_the_encoder_of_a_standard_sae_does_not_move_b_dec() -> None:
    sae = new_sae("standard")
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    x = next(mixture(0)).requires_grad_()
    sae.encode(x).sum().backward()
    assert sae.b_dec.grad is None
    assert sae.W_enc.grad is not None
    sae.eval().encode(x).sum().backward()
    assert sae.b_dec.grad is not None
    assert x.grad is not None
    hook.remove()
    assert "process_sae_in" not in vars(sae)


@BOTH
@pytest.mark.parametrize("mode", ["none", "layer_norm"])
def test_the_scale_is_that_of_what_the_encoder_reads(architecture: str, mode: str) -> None:
    settings = {**CONFIGS[architecture].to_dict(), "normalize_activations": mode}
    sae: Any = TrainingSAE.from_dict(settings)
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    x = next(mixture(0))
    sae.b_dec.data = x.mean(dim=0)
    sae(x)
    expected = sae.process_sae_in(x).norm(dim=1).median()
    torch.testing.assert_close(hook.adapter.input_norm, expected)


@BOTH
def test_a_gradient_from_before_it_was_attached_moves_nothing(architecture: str) -> None:
    sae = new_sae(architecture)
    optimizer = torch.optim.Adam(sae.parameters())
    sae(next(mixture(0))).sum().backward()
    BiasAdaptationHook.attach(sae, **SETTINGS)
    adapted = getattr(sae, PARAMETER[architecture])
    before = adapted.detach().clone()
    optimizer.step()
    assert torch.equal(adapted, before)


@BOTH
def test_nothing_adapts_in_eval_mode(architecture: str) -> None:
    sae = new_sae(architecture)
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    sae.eval()
    for _ in range(10):
        sae(next(mixture(0)))
    assert int(hook.adapter.n_steps) == 0


@BOTH
def test_only_steps_of_training_adapt(architecture: str) -> None:
    sae = new_sae(architecture)
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    take_steps(make_trainer(sae, 10), 10)
    before = getattr(sae, PARAMETER[architecture]).clone()
    x = next(mixture(0))
    for _ in range(10):
        sae(x.view(4, -1, 16))
        with torch.no_grad():
            sae(x)
    assert torch.equal(getattr(sae, PARAMETER[architecture]), before)
    assert int(hook.adapter.n_steps) == 10
    sae.requires_grad_(False)
    sae.requires_grad_(True)
    sae(x).sum().backward()  # in a loop of one's own
    assert int(hook.adapter.n_steps) == 11
    assert getattr(sae, PARAMETER[architecture]).grad is None


@BOTH
def test_compiled_it_adapts_as_it_does(architecture: str) -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        sae = new_sae(architecture)
        BiasAdaptationHook.attach(sae, **SETTINGS)
        trainer = make_trainer(sae, 12)
        if compiled:
            compiled_pass = torch.compile(sae.training_forward_pass, backend="aot_eager")
            vars(sae)["training_forward_pass"] = compiled_pass
        take_steps(trainer, 12)
        results.append(sae.state_dict())
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, rtol=1e-4, atol=1e-5)


@BOTH
def test_its_state_survives_a_checkpoint(architecture: str, tmp_path: Path) -> None:
    def new_run() -> tuple[Any, BiasAdaptationHook]:
        torch.manual_seed(0)
        sae = new_sae(architecture)
        return make_trainer(sae, 20, mixture(1)), BiasAdaptationHook.attach(sae, **SETTINGS)

    whole, _ = new_run()
    take_steps(whole, 18)
    first, _ = new_run()
    take_steps(first, 8)
    first.save_checkpoint("stopped", base_path=tmp_path)
    second, hook = new_run()
    second.load_trainer_state(tmp_path / "stopped")
    second.sae.load_weights_from_checkpoint(tmp_path / "stopped")
    assert int(hook.adapter.n_steps) == 8
    for _ in range(8):
        next(second.data_provider)
    take_steps(second, 10)
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(second.sae.state_dict()[name], value), name


def test_resumed_with_other_groups_the_settings_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sae = new_sae("standard")
    BiasAdaptationHook.attach(sae, **SETTINGS)
    sae.save_model(tmp_path)
    again = new_sae("standard")
    hook = BiasAdaptationHook.attach(again, target_l0=6.0, n_groups=3)
    again.load_weights_from_checkpoint(tmp_path)
    assert int(hook.adapter.group.max()) == 2
    assert float(hook.groups().target_frequency.sum()) == pytest.approx(6.0, rel=1e-4)
    assert "assigned to groups anew" in caplog.text


@BOTH
def test_what_is_saved_stays_stock(architecture: str, tmp_path: Path) -> None:
    sae = new_sae(architecture)
    BiasAdaptationHook.attach(sae, **SETTINGS)
    take_steps(make_trainer(sae, 10), 10)
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "inference")
    x = next(mixture(3))
    expected = sae.eval().encode(x)
    torch.testing.assert_close(
        TrainingSAE.load_from_disk(tmp_path / "checkpoint").encode(x), expected
    )
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "inference").encode(x), expected)


def test_misuse_is_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    topk = TrainingSAE.from_dict(TopKTrainingSAEConfig(16, 64, k=4).to_dict())
    with pytest.raises(TypeError, match="TopKTrainingSAE has no bias or threshold to adapt"):
        BiasAdaptationHook.attach(topk, **SETTINGS)
    with pytest.raises(TypeError, match="adapts its biases itself"):
        BiasAdaptationHook.attach(tiny_sae(), **SETTINGS)
    sae = new_sae("standard")
    with pytest.raises(ValueError, match="target_l0"):
        BiasAdaptationHook.attach(sae, target_l0=1000.0)
    with pytest.raises(ValueError, match=r"targetl0=3 is no setting .* did you mean 'target_l0'"):
        BiasAdaptationHook.attach(sae, targetl0=3)
    BiasAdaptationHook.attach(sae).remove()
    assert "target_l0 is not set" in caplog.text
    sae.save_model(tmp_path)
    BiasAdaptationHook.attach(sae, **SETTINGS)
    with pytest.raises(ValueError, match="already has a BiasAdaptationHook"):
        BiasAdaptationHook.attach(sae, **SETTINGS)
    with pytest.raises(FileNotFoundError, match="saved without a BiasAdaptationHook"):
        sae.load_weights_from_checkpoint(tmp_path)


@BOTH
def test_a_copy_has_a_hook_of_its_own(architecture: str, tmp_path: Path) -> None:
    sae = new_sae(architecture)
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    copied = copy.deepcopy(sae)
    before = copy.deepcopy(sae.state_dict())
    take_steps(make_trainer(copied, 10), 10)
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert int(hook.adapter.n_steps) == 0
    adapted = getattr(copied, PARAMETER[architecture])
    assert not torch.equal(adapted, before[PARAMETER[architecture]])
    # a checkpoint of the copy has the copy's state
    copied.save_model(tmp_path)
    sae.load_weights_from_checkpoint(tmp_path)
    assert int(hook.adapter.n_steps) == 10
    hook.remove()
    assert copied.hook_sae_acts_pre._forward_hooks


@BOTH
def test_a_reset_of_all_hooks_leaves_the_adaptation_on(architecture: str) -> None:
    sae = new_sae(architecture)
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    sae.reset_hooks(including_permanent=True)
    take_steps(make_trainer(sae, 5), 5)
    assert int(hook.adapter.n_steps) == 5
    hook.remove()
    take_steps(make_trainer(sae, 5), 5)
    assert int(hook.adapter.n_steps) == 5


def test_nan_in_a_batch_stops_before_it_is_counted() -> None:
    sae = new_sae("standard")
    hook = BiasAdaptationHook.attach(sae, **SETTINGS)
    trainer = make_trainer(sae, 10)
    take_steps(trainer, 2)
    batch = next(mixture(0))
    batch[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf at training step 2"):
        trainer.step(batch)
    assert int(hook.adapter.n_samples) == 512


def test_a_batch_of_no_samples_is_one_sentence() -> None:
    sae = new_sae("jumprelu")
    BiasAdaptationHook.attach(sae, **SETTINGS)
    with pytest.raises(ValueError, match="no samples"):
        make_trainer(sae, 10).step(torch.empty(0, 16))


def test_in_bfloat16_it_counts_what_fires() -> None:
    sae = TrainingSAE.from_dict({**CONFIGS["jumprelu"].to_dict(), "dtype": "bfloat16"})
    hook = BiasAdaptationHook.attach(sae, **{**SETTINGS, "adapt_every_n_steps": 100})
    assert isinstance(sae, JumpReLUTrainingSAE)
    sae.threshold.data = 0.3 + 0.001 * torch.arange(64.0)  # between two numbers of bfloat16
    trainer, fired = make_trainer(sae, 10, data=(x.bfloat16() for x in mixture(0))), 0
    for _ in range(3):
        fired += int((trainer.step(next(trainer.data_provider)).feature_acts > 0).sum())
    assert int(hook.adapter.fire_counts.sum()) == fired
