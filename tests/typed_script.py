"""A user's script as mypy (in `make check`) and pyright (test_user_types.py) see it; never run.

Both report an ignored mistake that they would not find.
"""

import torch
from typing_extensions import assert_type

import sae_lens_gba
from sae_lens_gba import NeuronGroups

saved = sae_lens_gba.load("my_sae")
assert_type(saved.sae.encode(torch.ones(1, 32)), torch.Tensor)
for row in NeuronGroups.load("my_sae").summary():
    assert_type(row["size"], int)
    assert_type(row["measured_frequency"], float)
assert_type(sae_lens_gba.publish("my_sae", "user/saes", dry_run=True).sae_ids, tuple[str, ...])
assert_type(sae_lens_gba.at_l0(saved, 2).label, str)
assert_type(sae_lens_gba.list_published("user/saes")[0].l0, float | None)

len(saved.grups)  # type: ignore
NeuronGroups.load("my_sae").summary()[0]["sise"]  # type: ignore
sae_lens_gba.at_l0(saved, "2")  # type: ignore
