"""What SAELens expects of its architectures holds for every kind of GBA SAE and transcoder."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, TopKTrainingSAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.evals import (
    get_eval_everything_config,
    get_featurewise_weight_based_metrics,
    run_evals,
)
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.at_target import decoded
from sae_lens_gba.registration import CLASSES
from tests.toolbox import (
    D_MODEL,
    HOOK,
    TINY_RUN,
    Fit,
    make_trainer,
    mixture,
    randomise,
    take_steps,
    tiny_config,
)

SAES: dict[str, dict[str, Any]] = {
    "default": {},
    "relu": {"activation": "relu"},
    "tied": {"tied": True},
    "relu, tied": {"activation": "relu", "tied": True},
    "one nested set": {"n_nested_reconstructions": 1},
    "dense": {"sparse_below_density": 0.0},
    "paper": {
        **GBATrainingSAEConfig.paper_v1(16, 64).get_training_architecture_details(),
        "bias_init": "quantile",
    },
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
}
TRANSCODERS: dict[str, dict[str, Any]] = {
    f"{kind}, {name}": {"architecture": f"gba_{kind}", **settings}
    for kind in ("transcoder", "skip_transcoder")
    for name, settings in {
        "as wide": {"d_out": 16, "encoder_correction_rate": 0.3},
        **{name: SAES[name] for name in SAES if not {"tied", "paper"} & {*name.split(", ")}},
    }.items()
}
VARIANTS = SAES | TRANSCODERS
of_saes = pytest.mark.parametrize("cfg", sorted(SAES), indirect=True)


@pytest.fixture(params=sorted(VARIANTS))
def cfg(request: pytest.FixtureRequest) -> GBATrainingSAEConfig:
    return tiny_config(**VARIANTS[request.param])


@pytest.fixture
def sae(cfg: GBATrainingSAEConfig) -> GBATrainingSAE:
    """With random weights and biases, in evaluation mode."""
    return randomise(CLASSES[cfg.architecture()][0](cfg)).eval()


@pytest.fixture
def x(sae: GBATrainingSAE) -> torch.Tensor:
    return next(mixture(0)).to(sae.dtype)


def width_of_output(sae: GBATrainingSAE) -> int:
    return int(getattr(sae, "d_out", 16))


def close(sae: GBATrainingSAE, actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}[sae.dtype]
    atol = tolerance * float(expected.detach().abs().max())
    if sae.dtype == torch.bfloat16:
        # rounded anew, a pre-activation may come to lie on the other side of its threshold
        far = ~torch.isclose(actual, expected, rtol=tolerance, atol=atol)
        assert float(far.float().mean()) < 1e-3
    else:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=atol)


def test_its_configuration_is_read_back(cfg: GBATrainingSAEConfig) -> None:
    written = json.loads(json.dumps(cfg.to_dict()))
    assert TrainingSAEConfig.from_dict(written).to_dict() == cfg.to_dict()
    assert type(TrainingSAE.from_dict(written)) is CLASSES[cfg.architecture()][0]


def test_forward_is_decode_of_encode(sae: GBATrainingSAE, x: torch.Tensor) -> None:
    acts = sae.encode(x)
    assert acts.shape == (256, 64) and acts.dtype == sae.dtype
    assert bool((acts >= 0).all()) and bool((acts > 0).any()) and bool((acts == 0).any())
    assert torch.equal(sae(x), decoded(sae, acts, x))
    assert sae(x).shape == (256, width_of_output(sae))


def test_leading_dimensions_are_kept(sae: GBATrainingSAE, x: torch.Tensor) -> None:
    in_texts = x.view(4, 64, 16)
    assert torch.equal(sae.encode(in_texts), sae.encode(x).view(4, 64, 64))
    assert sae(in_texts).shape == (4, 64, width_of_output(sae))


def test_training_and_use_encode_alike(sae: GBATrainingSAE, x: torch.Tensor) -> None:
    acts, hidden_pre = sae.encode_with_hidden_pre(x)
    close(sae, acts.to_dense(), sae.encode(x))
    assert acts.shape == hidden_pre.shape


def test_its_hooks_fire_and_can_intervene(sae: GBATrainingSAE, x: torch.Tensor) -> None:
    out, cache = sae.run_with_cache(x)
    assert {"hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons"} <= set(
        cache
    )
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))
    assert torch.equal(cache["hook_sae_recons"], sae.decode(sae.encode(x)))
    assert out.shape == (256, width_of_output(sae))
    silenced = sae.run_with_hooks(
        x, fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))]
    )
    close(sae, silenced, decoded(sae, torch.zeros_like(sae.encode(x)), x))


@of_saes
@pytest.mark.filterwarnings("ignore:Setting use_error_term directly")
def test_with_its_error_term_the_output_is_the_input(sae: GBATrainingSAE, x: torch.Tensor) -> None:
    sae.use_error_term = True
    out, cache = sae.run_with_cache(x)
    close(sae, out, x)
    assert "hook_sae_error" in cache


def test_decoder_norms_fold(sae: GBATrainingSAE, x: torch.Tensor) -> None:
    sae.W_dec.data.mul_(torch.rand(64, 1).to(sae.dtype) + 0.5)  # as after writing to it
    acts, out, norms = sae.encode(x), sae(x), sae.get_W_dec_norm()
    sae.fold_W_dec_norm()
    close(sae, sae.W_dec.norm(dim=1), torch.ones_like(norms))
    close(sae, sae(x), out)
    close(sae, sae.encode(x), (acts * norms).to(sae.dtype))
    close(sae, sae.get_W_dec_norm(), torch.ones_like(norms))


@pytest.mark.parametrize("has_started", [True, False])
def test_a_scale_of_the_inputs_folds(
    sae: GBATrainingSAE, x: torch.Tensor, has_started: bool
) -> None:
    if not has_started:  # no scale is known so far
        state = sae.state_dict().items()
        sae.load_state_dict({name: 0 * v if name.endswith("_norm") else v for name, v in state})
    sae.cfg.normalize_activations = "expected_average_only_in"
    acts, out = sae.encode(0.5 * x), sae(0.5 * x)
    sae.fold_activation_norm_scaling_factor(0.5)
    assert sae.cfg.to_dict()["normalize_activations"] == "none"
    close(sae, sae.encode(x), acts)
    close(sae, sae(x), 2 * out)


def test_saving_changes_nothing_of_it(sae: GBATrainingSAE, x: torch.Tensor, tmp_path: Path) -> None:
    sae.save_inference_model(tmp_path / "first")  # sets what saving settles
    before = copy.deepcopy((sae.state_dict(), sae.cfg.to_dict()))
    sae.save_inference_model(tmp_path / "stock")
    sae.save_model(tmp_path / "checkpoint")
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    assert sae.cfg.to_dict() == before[1]
    for folder, cls in (("stock", SAE), ("checkpoint", TrainingSAE)):
        loaded: Any = cls.load_from_disk(tmp_path / folder)
        assert loaded.dtype == sae.dtype
        close(sae, loaded.encode(x), sae.encode(x))
        close(sae, loaded(x), sae(x))


@of_saes
def test_saelens_measures_its_weights(sae: GBATrainingSAE) -> None:
    measured = get_featurewise_weight_based_metrics(sae)
    assert len(measured["encoder_norm"]) == 64
    assert all(math.isfinite(v) for values in measured.values() for v in values)


def test_it_trains_and_goes_on_from_a_checkpoint_of_saelens_trainer(
    cfg: GBATrainingSAEConfig, tmp_path: Path
) -> None:
    def new_run() -> Any:
        torch.manual_seed(0)
        return make_trainer(CLASSES[cfg.architecture()][0](copy.deepcopy(cfg)), 12)

    whole, first, second = new_run(), new_run(), new_run()
    take_steps(whole, 12)
    take_steps(first, 7)
    first.save_checkpoint("stopped", base_path=tmp_path)
    second.load_trainer_state(tmp_path / "stopped")
    second.sae.load_weights_from_checkpoint(tmp_path / "stopped")
    for _ in range(7):
        next(second.data_provider)
    take_steps(second, 5)
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(second.sae.state_dict()[name], value), name


def is_trained(sae: TrainingSAE[Any], folder: Path) -> None:
    """And saved as it is."""
    assert type(sae) is GBATrainingSAE
    assert int(sae.adapter.n_steps) > 0
    loaded = SAE.load_from_disk(folder)
    x = torch.randn(10, D_MODEL).to(sae.dtype)
    # SAELens' training SAEs take heads side by side
    as_hooked = x.view(10, 4, -1) if sae.cfg.reshape_activations == "hook_z" else x
    assert loaded(as_hooked).shape == as_hooked.shape
    close(sae, loaded(as_hooked).view_as(x), sae(x))
    metadata = loaded.cfg.metadata
    if sae.cfg.calibration_samples:
        assert metadata.gba["l0"]["n_samples"] > 0
        assert metadata.l0 == pytest.approx(metadata.gba["l0"]["target"], rel=0.02)


@of_saes
def test_saelens_runner_saves_checkpoints_and_resumes_from_them(
    cfg: GBATrainingSAEConfig, fit: Fit, tmp_path: Path
) -> None:
    # bit-equality is shown with SAETrainer, above: the runner's activation buffer is not part of
    # SAELens' checkpoints, so its data go on in another order
    part, run = fit(
        "part", sae=copy.deepcopy(cfg), training_tokens=512, n_checkpoints=1,
        save_final_checkpoint=True, checkpoint_path=str(tmp_path / "checkpoints"),
    )  # fmt: skip
    first, last = sorted(Path(str(run.checkpoint_path)).iterdir())
    checkpoint: Any = TrainingSAE.load_from_disk(first)
    assert int(checkpoint.adapter.n_steps) == 5
    assert last.name == "final_512"
    resumed, _ = fit("resumed", sae=cfg, training_tokens=1024, resume_from_checkpoint=str(last))
    assert (int(part.adapter.n_steps), int(resumed.adapter.n_steps)) == (8, 16)
    is_trained(resumed, tmp_path / "resumed")


ON_HEADS = "blocks.0.attn.hook_z"
TRAINED = {
    **{name: (HOOK, tiny_config(**settings)) for name, settings in SAES.items()},
    **{
        f"{name} on heads": (ON_HEADS, tiny_config(**settings, reshape_activations="hook_z"))
        for name, settings in SAES.items()
    },
}
Together = tuple[MultiSAETrainingRunner, dict[str, TrainingSAE[Any]]]


@pytest.fixture(scope="module")
def together(
    tmp_path_factory: pytest.TempPathFactory, tiny_texts: Dataset, tiny_hooked_transformer: Any
) -> Together:
    """All of them and a TopK SAE, trained at once on one model."""
    torch.manual_seed(0)
    topk = TopKTrainingSAEConfig(D_MODEL, 64, k=4)
    cfg = MultiSAETrainingRunnerConfig(
        **TINY_RUN,
        saes={**{name: cfg for name, (_, cfg) in TRAINED.items()}, "topk": topk},
        hook_names={**{name: hook for name, (hook, _) in TRAINED.items()}, "topk": HOOK},
        output_path=str(tmp_path_factory.mktemp("together")),
    )
    runner = MultiSAETrainingRunner(
        cfg, override_model=tiny_hooked_transformer, override_dataset=tiny_texts
    )
    return runner, runner.run()


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_beside_others(together: Together, name: str) -> None:
    runner, saes = together
    sae: Any = saes[name]
    assert int(sae.adapter.n_steps) == 24
    is_trained(sae, Path(str(runner.cfg.output_path)) / name)


def test_those_beside_it_are_what_they_were(together: Together) -> None:
    folder = Path(str(together[0].cfg.output_path)) / "topk"
    assert type(SAE.load_from_disk(folder)).__name__ == "TopKSAE"


@pytest.mark.parametrize("name", TRAINED)
def test_saelens_evaluates_it(together: Together, name: str) -> None:
    runner, saes = together
    stock: SAE[Any] = SAE.load_from_disk(Path(str(runner.cfg.output_path)) / name)
    measured = [
        run_evals(
            sae, runner.activations_store, runner.model, ActivationScaler(),
            get_eval_everything_config(n_eval_reconstruction_batches=1),
            exclude_special_tokens=False,
        )
        for sae in (saes[name].eval(), stock)
    ]  # fmt: skip
    for metrics, of_latents in measured:
        assert 1 < metrics["sparsity"]["l0"] < 16
        numbers = [value for group in metrics.values() for value in group.values()]
        assert all(math.isfinite(value) for value in numbers)
        assert all(len(values) == 64 for values in of_latents.values())
