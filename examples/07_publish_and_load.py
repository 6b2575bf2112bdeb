"""Publish an SAE on the Hugging Face Hub and load it back.

Without arguments it shows what would be published, and loads that: nothing is sent.
To try it on a Hub on this machine, in two terminals:

    python -m tests.local_hub              # shows its address and token
    python examples/07_publish_and_load.py --endpoint http://127.0.0.1:PORT --token valid
"""

import argparse

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig, list_published, load, publish

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--repo", default="user/tiny-gba-sae")
parser.add_argument("--endpoint", help="of the Hub; none: a dry run")
parser.add_argument("--token", help="default: the one of 'hf auth login'")
args = parser.parse_args()

# any trained GBA SAE will do; this one learns sparse mixtures of 100 random directions
torch.set_num_threads(1)
torch.manual_seed(0)
directions = torch.randn(100, 32)
data = (((torch.rand(256, 100) < 0.04) * torch.rand(256, 100)) @ directions for _ in iter(int, 1))
sae = GBATrainingSAE(GBATrainingSAEConfig(d_in=32, d_sae=128, n_groups=4, target_l0=4.0))
SAETrainer(SAETrainerConfig(256 * 600, 256, lr=1e-3, lr_end=1e-3), sae, data).fit()

publication = publish(
    sae,
    args.repo,
    metadata={"model_name": "user/toy-model", "hook_name": "blocks.0.hook_resid_post"},
    license="mit",
    endpoint=args.endpoint,
    token=args.token,
    dry_run=args.endpoint is None,
)
print(publication.summary())
where = publication.folder or args.repo
print(*list_published(where, endpoint=args.endpoint, token=args.token), sep="\n")
loaded = load(where, publication.sae_ids[0], endpoint=args.endpoint, token=args.token)
assert loaded.groups is not None  # as it would be for another architecture
print(*loaded.groups.summary(), sep="\n")
