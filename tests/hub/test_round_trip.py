"""Published over HTTP, loaded by SAELens alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.saved.loading import load
from tests.hub_fixtures import REPO, activations, publish_to
from tests.local_hub import LocalHub

# what a stranger's process does; an import of this package fails there
WITH_PLAIN_SAELENS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sae_lens_gba":
            raise ImportError("sae_lens_gba is not installed here")

sys.meta_path.insert(0, Blocker())
import json
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
from sae_lens import SAE

x = load_file(sys.argv[1])["x"]
result, facts = {}, {}
for i, sae_id in enumerate(json.loads(sys.argv[3])):
    sae, cfg, log_sparsity = SAE.from_pretrained_with_cfg_and_sparsity(sys.argv[4], sae_id)
    result[f"out_{i}"] = sae(x).detach()
    result[f"acts_{i}"] = sae.encode(x).detach()
    result[f"sparsity_{i}"] = log_sparsity
    facts[sae_id] = [type(sae).__name__, sae.cfg.metadata.hook_name]
save_file(result, sys.argv[2])
assert "sae_lens_gba" not in sys.modules
print(json.dumps(facts))
"""


def test_published_saes_give_the_same_bits_in_a_process_without_this_package(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE, relu_sae: GBATrainingSAE,
    skip_transcoder: GBATrainingSAE, tmp_path: Path,
) -> None:  # fmt: skip
    saes = {
        "layer_1/jumprelu": jumprelu_sae,
        "layer_1/relu": relu_sae,
        "layer_1/transcoder": skip_transcoder,
    }
    publish_to(hub, saes)
    x = activations(64, seed=7)
    save_file({"x": x}, tmp_path / "x.safetensors")

    arguments = [str(tmp_path / "x.safetensors"), str(tmp_path / "out.safetensors")]
    arguments += [json.dumps(list(saes)), REPO]
    run = subprocess.run(
        [sys.executable, "-c", WITH_PLAIN_SAELENS, *arguments],
        env={
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "stranger"),
            "HF_HUB_OFFLINE": "0",
        },
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout.splitlines()[-1])
    kinds = ["JumpReLUSAE", "StandardSAE", "JumpReLUSkipTranscoder"]
    assert [kind for kind, _ in facts.values()] == kinds
    result = load_file(tmp_path / "out.safetensors")
    for i, sae in enumerate(saes.values()):
        folder = tmp_path / f"published_{i}"
        sae.save_inference_model(folder)
        loaded = load(folder).sae
        assert torch.equal(result[f"out_{i}"], loaded(x))
        assert torch.equal(result[f"acts_{i}"], loaded.encode(x))
        assert (result[f"acts_{i}"] > 0).any()
        expected = torch.log10(sae.groups().measured_frequency + 1e-10)
        assert torch.equal(result[f"sparsity_{i}"], expected)


@pytest.mark.parametrize("which", ["jumprelu_sae", "relu_sae", "skip_transcoder"])
def test_the_published_sae_computes_what_the_trained_one_computed(
    hub: LocalHub, which: str, request: pytest.FixtureRequest
) -> None:
    sae: GBATrainingSAE = request.getfixturevalue(which)
    publish_to(hub, sae)
    loaded = load(REPO, endpoint=hub.endpoint)
    x = activations(64, seed=7)
    torch.testing.assert_close(loaded.sae(x), sae(x), rtol=1e-5, atol=1e-6)
    for name in ("group", "target_frequency", "measured_frequency"):
        assert torch.equal(getattr(loaded.groups, name), getattr(sae.groups(), name))
    config = loaded.training_config
    assert config is not None
    assert config.get_training_architecture_details() == (
        sae.cfg.get_training_architecture_details()
    )
