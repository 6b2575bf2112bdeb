"""The demo: train a GBA SAE of a real language model, save it, reload it, look at it."""

import argparse
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_gba.demo.config import DemoConfig, runner_config
from sae_lens_gba.demo.model import MODEL_NAME, load_demo_model
from sae_lens_gba.demo.summary import LATENTS_A_GROUP, summary
from sae_lens_gba.demo.text import DATASET_NAME, demo_texts
from sae_lens_gba.report.collect import ReportConfig, collect_report
from sae_lens_gba.report.text_stream import activations_on, open_text
from sae_lens_gba.runs.folder import CHECKPOINTS, LOCK, TO_REPLACE
from sae_lens_gba.runs.training import commands_for, train
from sae_lens_gba.saved.files import read_json
from sae_lens_gba.sources import load_saes

MIN_FREE_BYTES = 2 * 1024**3

_log = logging.getLogger(__name__)


def run_from_arguments(arguments: argparse.Namespace) -> None:
    names = DemoConfig.__dataclass_fields__
    run_demo(DemoConfig(**{name: getattr(arguments, name) for name in names}))


def run_demo(cfg: DemoConfig) -> None:
    """Train, save, reload in a process without this package, and show.

    Raises:
        FileNotFoundError: the wheels with the model and the text are not installed.
        OSError: no room or no permission for the output, or it holds other files.
        ValueError: a setting is not possible.
    """
    _require_room(cfg.output)
    _require_free_name(cfg.output)
    runner_cfg = runner_config(cfg)  # checks the settings before any work
    _log.info("loading SmolLM2-135M-Instruct (the first time takes a minute) ...")
    model: Any = load_demo_model(cfg.cache)
    texts, held_out = demo_texts(), demo_texts(held_out=True)
    sae: Any = train(
        runner_cfg,
        model=model,
        dataset=texts,
        overwrite=True,  # an earlier demo's, whole or not
        how_to_resume="run the demo again, which begins anew",
    )
    sae.eval()
    (saved,) = load_saes([cfg.output])
    store = open_text(model, saved, held_out)
    _reload_with_plain_saelens(
        cfg.output, activations_on(store, store.get_batch_tokens(1)).flatten(0, 1), sae
    )
    n_latents = LATENTS_A_GROUP * sae.cfg.n_groups
    report_cfg = ReportConfig(cfg.snippets_tokens, n_latents, ce_tokens=0, seed=cfg.seed)
    report = collect_report([saved], model, held_out, f"{DATASET_NAME}, held out", report_cfg)
    _log.info("%s", summary(report))
    _log.info(
        "load it anywhere, without this package:\n"
        '    from sae_lens import SAE\n    sae = SAE.load_from_disk("%s")',
        cfg.output,
    )
    _log.info(commands_for(cfg.output))


def _require_room(output: Path) -> None:
    parent = next(p for p in [output.absolute(), *output.absolute().parents] if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"output={output} lies below {parent}, which is not a folder.")
    free = shutil.disk_usage(parent).free
    if free < MIN_FREE_BYTES:
        raise OSError(
            f"output={output} has {free / 1024**3:.1f} GiB free, the demo needs "
            f"{MIN_FREE_BYTES / 1024**3:.0f} GiB: free some, or give another --output."
        )


def _require_free_name(output: Path) -> None:
    # one that was interrupted left its checkpoints only
    of_any_run = {CHECKPOINTS, LOCK, TO_REPLACE}
    if not output.is_dir() or {path.name for path in output.iterdir()} <= of_any_run:
        return
    cfg = output / SAE_CFG_FILENAME
    of_demo = {"model_name": MODEL_NAME, "dataset_path": DATASET_NAME}
    known = (read_json(cfg).get("metadata") or {}) if cfg.is_file() else {}
    if not of_demo.items() <= known.items():
        raise FileExistsError(
            f"output={output} holds something else than an earlier demo's SAE: name a new folder "
            "with --output."
        )


_RELOAD = """
import json, sys
import torch
sys.modules["sae_lens_gba"] = None  # an import of it would fail
from sae_lens import SAE
folder, inputs = sys.argv[1:3]
sae = SAE.load_from_disk(folder)
x = torch.load(inputs, weights_only=True)
acts = sae.encode(x)
torch.save({"acts": acts, "out": sae.decode(acts)}, inputs)
print(json.dumps({"architecture": sae.cfg.architecture(), "class": type(sae).__name__}))
"""


def _reload_with_plain_saelens(folder: Path, inputs: torch.Tensor, sae: Any) -> None:
    """Raises RuntimeError if the reloaded SAE differs in a single bit."""
    exchange = folder / "reload.pt"
    torch.save(inputs, exchange)
    try:
        process = subprocess.run(
            [sys.executable, "-c", _RELOAD, str(folder), str(exchange)],
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            raise RuntimeError(f"plain SAELens could not load {folder}:\n{process.stderr}")
        reloaded = torch.load(exchange, weights_only=True)
    finally:
        exchange.unlink(missing_ok=True)
    with torch.no_grad():
        acts = sae.encode(inputs)
        same = torch.equal(acts, reloaded["acts"]) and torch.equal(
            sae.decode(acts), reloaded["out"]
        )
    if not same:
        raise RuntimeError(f"the SAE in {folder} is not the one that was trained.")
    loaded = json.loads(process.stdout)
    _log.info(
        "reloaded with plain SAELens as %s (%s): activations and outputs are bit-equal",
        loaded["class"],
        loaded["architecture"],
    )
