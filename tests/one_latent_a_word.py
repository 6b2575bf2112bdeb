"""What the report of these tests is made of: one latent for each word of a tiny vocabulary.

The model's embeddings are orthogonal and of unit norm, and the SAE on them has one latent a
token: it fires if and only if that token is read, with an activation of 1, and rebuilds the
embedding exactly. So every frequency, context and match can be counted by hand.

Each folder of tests that uses the fixtures imports them in its conftest.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_gba import NeuronGroups
from sae_lens_gba.report import Report
from tests.toolbox import boot, save_tiny_llama

Collect = Callable[..., Report]

HOOK = "blocks.0.hook_resid_pre"
CONTEXT_SIZE = 16
D_MODEL = 48  # the size of the vocabulary
N_GROUPS = 4
ATTACKS = (
    "<script>window.attacked=1</script>",
    "</script><script>window.attacked=2</script>",
    "<img/src=x/onerror=window.attacked=3>",
    "{{7*7}}",
)
VOCABULARY = ["<s>", "<unk>", *(f"word{i}" for i in range(42)), *ATTACKS]
N_LATENTS = len(VOCABULARY)
NEVER_USED = 41  # word39: in the vocabulary, not in the text
REPLACED = (10, 11, 12)  # latents of which the second SAE has nothing


def text_rows(n_rows: int = 60) -> list[str]:
    """Texts in which word0 is common, and the last words are rare."""
    generator = torch.Generator().manual_seed(0)
    tokens = [t for t in range(2, N_LATENTS) if t != NEVER_USED]
    weights = torch.arange(1, len(tokens) + 1).float().pow(-0.7)
    rows = weights.repeat(n_rows, 1).multinomial(30, replacement=True, generator=generator)
    return [" ".join(VOCABULARY[tokens[i]] for i in row) for row in rows.tolist()]


def save_sae(folder: Path, directions: torch.Tensor, **metadata: Any) -> Path:
    """An SAE with a latent for each of ``directions`` (n, D_MODEL), which have unit norm."""
    values = {
        "model_name": "tiny",
        "hook_name": HOOK,
        "context_size": CONTEXT_SIZE,
        "prepend_bos": True,
        **metadata,
    }
    cfg = JumpReLUSAEConfig(
        d_in=directions.shape[1],
        d_sae=len(directions),
        apply_b_dec_to_input=False,
        metadata=SAEMetadata(**values),
    )
    sae = JumpReLUSAE(cfg)  # its biases are 0
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions)
        sae.threshold.fill_(0.99)
    sae.save_model(folder)
    return folder


@pytest.fixture(scope="session")
def texts() -> Dataset:
    return Dataset.from_dict({"text": text_rows()})


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = save_tiny_llama(
        folder, VOCABULARY, hidden_size=D_MODEL, num_hidden_layers=1, tie_word_embeddings=True
    )
    embedding = model.get_parameter("model.embed_tokens.weight").data
    embedding.copy_(torch.linalg.qr(torch.randn_like(embedding)).Q)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Any:
    return boot(model_folder)


@pytest.fixture(scope="session")
def sae_folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The SAE with one latent a token, in N_GROUPS groups, and a changed copy without groups.

    The copy has the latents in reverse order, and random directions instead of REPLACED.
    """
    root = tmp_path_factory.mktemp("saes")
    directions = model.W_E.detach().float().clone()
    first = save_sae(
        root / "first<b>",
        directions,
        training_architecture="gba",
        training_architecture_details={"target_l0": 1.0},
    )
    NeuronGroups(
        group=torch.arange(N_LATENTS) * N_GROUPS // N_LATENTS,
        target_frequency=torch.full((N_LATENTS,), 1 / N_LATENTS),
        measured_frequency=torch.full((N_LATENTS,), 1 / N_LATENTS),
    ).save(first)
    changed = directions.clone()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(len(REPLACED), D_MODEL, generator=generator)
    changed[list(REPLACED)] = torch.nn.functional.normalize(noise, dim=1)
    second = save_sae(root / "second", changed.flip(0))
    return first, second
