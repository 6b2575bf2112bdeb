"""Adam in one pass over the weights: the same numbers, for our SAEs' optimizers alone."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.training.sae_trainer import SAETrainer
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.optimizer_hooks import attend_optimizer_of
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config


def new_run(fused: bool, n_seen: int = 0) -> SAETrainer[Any, Any]:
    torch.manual_seed(0)
    data = (x.double() for x in mixture(1))
    for _ in range(n_seen):
        next(data)
    trainer = make_trainer(GBATrainingSAE(tiny_config(dtype="float64")), 40, data)
    if not fused:
        trainer.optimizer.param_groups[0]["fused"] = False
    return trainer


def assert_same(one: SAETrainer[Any, Any], other: SAETrainer[Any, Any]) -> None:
    for name, value in one.sae.state_dict().items():
        torch.testing.assert_close(other.sae.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(one.sae.parameters(), other.sae.parameters(), strict=True):
        state, same = one.optimizer.state[mine], other.optimizer.state[theirs]
        assert state.keys() == same.keys()
        for name in state:
            torch.testing.assert_close(same[name], state[name], rtol=1e-12, atol=1e-12)


def test_saelens_adam_is_fused_and_has_the_same_numbers() -> None:
    plain, fused = new_run(fused=False), new_run(fused=True)
    for trainer in (plain, fused):
        take_steps(trainer, 30)
    assert not plain.optimizer.param_groups[0]["fused"]
    assert fused.optimizer.param_groups[0]["fused"]
    assert_same(plain, fused)


@pytest.mark.parametrize("fused_before", [False, True])
def test_a_run_resumes_from_a_checkpoint_of_the_other_kind(
    tmp_path: Path, fused_before: bool
) -> None:
    whole = new_run(fused=False)
    take_steps(whole, 20)
    first = new_run(fused_before)
    take_steps(first, 13)
    # as a run that knows nothing of the choice has it
    if not fused_before:
        first.optimizer.param_groups[0]["fused"] = None
    first.save_checkpoint("stopped", base_path=tmp_path)
    second = new_run(fused=True, n_seen=13)
    second.load_trainer_state(tmp_path / "stopped")
    second.sae.load_weights_from_checkpoint(tmp_path / "stopped")
    if fused_before:
        second.optimizer.param_groups[0]["fused"] = False
    take_steps(second, 7)
    assert bool(second.optimizer.param_groups[0]["fused"]) is not fused_before
    assert_same(whole, second)


def step_of(optimizer: torch.optim.Optimizer, *parameters: nn.Parameter) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def decoder(rows: int = 4) -> nn.Parameter:
    weight = nn.Parameter(torch.randn(rows, 3))
    attend_optimizer_of(weight)
    return weight


@pytest.mark.parametrize("tied", [False, True])
def test_an_optimizer_from_before_a_fold_says_what_it_leaves_out(
    tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sae = GBATrainingSAE(tiny_config(tied=tied))
    trainer = make_trainer(sae, 10)
    take_steps(trainer, 2)
    sae.fold_W_dec_norm()
    take_steps(trainer, 2)
    assert caplog.text.count("make a new optimizer") == 1
    caplog.clear()
    take_steps(make_trainer(sae, 10), 2)
    assert not caplog.text


def test_an_optimizer_without_our_weights_stays_as_it_is() -> None:
    decoder()
    other = nn.Parameter(torch.randn(4, 3))
    optimizer = Adam([other])
    step_of(optimizer, other)
    assert optimizer.param_groups[0]["fused"] is None
    assert not torch.allclose(other.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
def test_what_somebody_chose_for_adam_stays_chosen(choice: dict[str, Any]) -> None:
    weight = decoder()
    if "differentiable" in choice:
        weight.requires_grad_(False)
    optimizer = Adam([weight], **choice)
    step_of(optimizer, weight)
    assert not optimizer.param_groups[0]["fused"]


def test_only_the_group_with_our_weights_is_fused() -> None:
    weight, other = decoder(), nn.Parameter(torch.randn(2, 2))
    optimizer = Adam([{"params": [weight]}, {"params": [other]}])
    step_of(optimizer, weight, other)
    assert [group["fused"] for group in optimizer.param_groups] == [True, None]


def test_optimizers_other_than_adam_step_as_they_do() -> None:
    weight = decoder()
    optimizer = SGD([weight], lr=0.1)
    step_of(optimizer, weight)
    assert optimizer.param_groups[0]["fused"] is None
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(4))


def test_weights_in_another_layout_are_left_to_plain_adam() -> None:
    # torch's fused Adam on a CPU takes memory as it comes: weights would get others' gradients
    weight = nn.Parameter(torch.randn(3, 4).T)
    attend_optimizer_of(weight)
    optimizer = Adam([weight])
    step_of(optimizer, weight)
    assert optimizer.param_groups[0]["fused"] is None


def test_moments_in_another_layout_are_left_to_plain_adam() -> None:
    weight = decoder()
    optimizer = Adam([weight], foreach=False)
    step_of(optimizer, weight)
    state = optimizer.state[weight]
    state["exp_avg"] = state["exp_avg"].T.contiguous().T  # as another's checkpoint may have it
    optimizer.param_groups[0]["foreach"] = None
    step_of(optimizer, weight)
    assert optimizer.param_groups[0]["fused"] is None


def test_nothing_is_installed_twice_or_kept_alive() -> None:
    decoder()
    n_hooks = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    weight = decoder()
    optimizer = Adam([weight])
    step_of(optimizer, weight)
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == n_hooks
    gone = weakref.ref(weight), weakref.ref(optimizer)
    del weight, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
