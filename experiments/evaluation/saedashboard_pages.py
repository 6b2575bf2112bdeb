"""SAEDashboard's feature pages (sae-dashboard 0.8.0) of a saved GBA SAE.

SAEDashboard does not resolve beside transformer-lens 3, so it needs a virtual environment of
its own, and no test runs this script. It can do without this package: a saved GBA SAE is a
stock SAELens SAE.

    python -m venv dashboard
    dashboard/bin/pip install sae-dashboard==0.8.0 "transformer-lens<3" "pyarrow<21"
    dashboard/bin/python experiments/evaluation/saedashboard_pages.py demo_output \\
        --model FOLDER --dataset texts.jsonl

FOLDER is the model as a Hugging Face folder (the demo keeps one in its cache), and the text
file has a JSON object with a field "text" on each line. The page loads d3 and plotly from the
network when it is opened; the page of ``sae-lens-gba report`` does not.
"""

import argparse
import json
from pathlib import Path

import torch
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("sae_dir", type=Path)
parser.add_argument("--model", required=True, help="Hugging Face folder of the model")
parser.add_argument("--dataset", type=Path, required=True, help="JSON lines with a field text")
parser.add_argument("--latents", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--sequences", type=int, default=64)
parser.add_argument("--output", type=Path, default=Path("dashboard.html"))
args = parser.parse_args()

sae = SAE.load_from_disk(args.sae_dir)
sae.fold_W_dec_norm()  # SAEDashboard expects decoder rows of unit norm
# transformers 4, which comes with SAEDashboard, does not know the class that 5 writes
tokenizer = PreTrainedTokenizerFast.from_pretrained(args.model)
c = AutoConfig.from_pretrained(args.model)
# transformers 5 writes it in another place than 4 reads it
c.rope_theta = getattr(c, "rope_parameters", {}).get("rope_theta", c.rope_theta)
hf_model = AutoModelForCausalLM.from_pretrained(args.model, config=c, torch_dtype=torch.float32)
# transformer-lens 2 does not know SmolLM2 by name, but it is a Llama
model_cfg = HookedTransformerConfig(
    n_layers=c.num_hidden_layers, d_model=c.hidden_size, d_mlp=c.intermediate_size,
    n_heads=c.num_attention_heads, n_key_value_heads=c.num_key_value_heads,
    d_head=c.hidden_size // c.num_attention_heads, d_vocab=c.vocab_size, n_ctx=2048,
    eps=c.rms_norm_eps, act_fn="silu", gated_mlp=True, normalization_type="RMS", final_rms=True,
    positional_embedding_type="rotary", rotary_base=int(c.rope_theta),
    rotary_dim=c.hidden_size // c.num_attention_heads, rotary_adjacent_pairs=False,
    original_architecture="LlamaForCausalLM", device="cpu",
)  # fmt: skip
model = HookedSAETransformer(model_cfg)
model.tokenizer = tokenizer
model.load_state_dict(convert_llama_weights(hf_model, model_cfg), strict=False)
probe = torch.arange(1, 17).unsqueeze(0)
assert torch.allclose(model(probe), hf_model(probe).logits, atol=1e-2, rtol=1e-2)
context = sae.cfg.metadata.context_size
ids = [t for row in args.dataset.open() for t in tokenizer(json.loads(row)["text"])["input_ids"]]
n = min(args.sequences, len(ids) // (context - 1))
tokens = torch.tensor(ids[: n * (context - 1)]).view(n, context - 1)
tokens = torch.cat([torch.full((n, 1), tokenizer.bos_token_id), tokens], dim=1)

cfg = SaeVisConfig(hook_point=sae.cfg.metadata.hook_name, features=args.latents)
data = SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens)
save_feature_centric_vis(data, args.output)
print(f"open {args.output} in a browser")
