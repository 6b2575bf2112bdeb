"""Flags of the commands besides ``train``, whose modules would take seconds to import."""

from argparse import ArgumentParser
from pathlib import Path

from sae_lens_gba_command.dataclass_source import fields_of


def add_publish(parser: ArgumentParser) -> None:
    """Flags of ``sae-lens-gba publish``."""
    add = parser.add_argument
    add("repo_id", help="user-or-organisation/name on the Hub")
    add(
        "saes",
        nargs="+",
        metavar="[ID=]FOLDER",
        help="output folder of a run or training checkpoint; the default id is "
        "{hook_name}/l0_{L0 asked for}/width_{d_sae}",
    )
    add(
        "--metadata",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="fields to set in the SAEs' metadata, such as model_name=gpt2",
    )
    add(
        "--evaluations",
        type=Path,
        metavar="JSON",
        help="file with an object per id, each like the evaluation.json that the report leaves "
        "beside an SAE; without it, those are taken",
    )
    add(
        "--neuronpedia",
        dest="neuronpedia_ids",
        nargs="+",
        default=[],
        metavar="ID=MODEL/LAYER-SOURCE",
        help="Neuronpedia's ids of the SAEs, which the card links to",
    )
    add("--license", help="of the SAEs, such as mit")
    add("--base-model", help="Hub name of the model, where the metadata has another one")
    add(
        "--private",
        action="store_true",
        default=None,
        help="make the repo private, if it is created",
    )
    add("--revision", help="branch to commit to; created if need be")
    add("--create-pr", action="store_true", help="open a pull request against main")
    add("--commit-message", help="first line of the commit's message")
    add("--token", help="default: the one of 'hf auth login'")
    add("--endpoint", help="of the Hub; default: HF_ENDPOINT, or the public one")
    add("--dry-run", action="store_true", help="write the files, show them, send nothing")
    add("--folder", type=Path, help="keep the published files here")


def add_report(parser: ArgumentParser) -> None:
    """Flags of ``sae-lens-gba report``."""
    default, add = _defaults("report/collect.py", "ReportConfig"), parser.add_argument
    add("sae_dir", type=Path, metavar="SAE_DIR", help="folder of a saved SAE")
    add("--compare", type=Path, nargs="+", default=[], metavar="OTHER", help="more SAE folders")
    add("--model", help="hub name or folder; the SAE's own if not given")
    add(
        "--dataset",
        help="text file, csv, json(l), parquet, saved data set or hub name; what the SAE was "
        "trained on if not given; its validation or test split, if it has one",
    )
    add("--output", type=Path, help="HTML file to write, SAE_DIR/report.html if not given")
    add("--tokens", dest="n_tokens", type=int, default=default["n_tokens"], help="of text to read")
    add("--context-size", type=int, help="tokens per sequence; the SAE's own if not given")
    add(
        "--ce-tokens",
        type=int,
        default=default["ce_tokens"],
        help="for the CE loss, at most --tokens; 0 leaves it out",
    )
    add(
        "--sample",
        dest="n_latents",
        type=int,
        help="latents to show in detail; all if not given",
    )
    add("--latents", type=int, nargs="+", default=(), help="always show these latents")
    add(
        "--explanations",
        type=Path,
        metavar="PATH",
        help="of latents, to show: delphi's folder, Neuronpedia's jsonl, or json by latent",
    )
    add("--delphi", type=Path, metavar="FOLDER", help="write activations for delphi to explain")
    add("--random-baseline", action="store_true", help="compare with random directions as well")
    add("--seed", type=int, default=default["seed"], help="of the samples")
    add("--device", help="cpu, cuda, mps ...; cuda if there is one, else cpu, if not given")
    add("--autocast", action="store_true", help="run the model in bfloat16")


def add_look(parser: ArgumentParser) -> None:
    """Flags of ``sae-lens-gba look``."""
    add = parser.add_argument
    add("sae_dir", type=Path, metavar="SAE_DIR", help="folder of a saved SAE")
    add("--model", help="hub name or folder; the SAE's own if not given")
    add("--port", type=int, default=8123, help="of this machine; 0 takes a free one")
    add("--device", help="cpu, cuda, mps ...; cuda if there is one, else cpu, if not given")


def add_plan(parser: ArgumentParser) -> None:
    """Flags of ``sae-lens-gba plan``."""
    default, add = _defaults("distributed/plan.py", "Plan"), parser.add_argument
    nested = _defaults("config.py", "GBATrainingSAEConfig")["n_nested_reconstructions"]
    add("--d-in", type=int, required=True, help="dimensions of the input")
    add("--d-sae", type=int, required=True, help="latents")
    add("--batch", type=int, required=True, help="samples a step, of all devices together")
    add("--devices", type=int, default=8, help="how many")
    add("--l0", type=float, default=default["l0"], help="active latents a sample")
    add("--nested", type=int, default=nested, help="n_nested_reconstructions")
    add("--memory-gb", type=float, default=default["memory_gb"], help="of a device")
    add(
        "--link-gb-s",
        type=float,
        default=default["link_gb_s"],
        help="GB a second between devices: 370 over NVLink, 40 over a fast network",
    )


def add_demo(parser: ArgumentParser) -> None:
    """Flags of ``sae-lens-gba demo``."""
    default, add = _defaults("demo/config.py", "DemoConfig"), parser.add_argument
    add(
        "--output",
        type=Path,
        default=default["output"],
        help="folder for the SAE; an earlier demo's is replaced",
    )
    add("--cache", type=Path, help="for the model's copy; the user's cache if not given")
    add("--hook-name", default=default["hook_name"], help="what the SAE is trained on")
    add("--d-sae", type=int, default=default["d_sae"], help="latents")
    add("--target-l0", type=float, default=default["target_l0"], help="active latents a token")
    add("--training-tokens", type=int, default=default["training_tokens"], help="to train on")
    add("--snippets-tokens", type=int, default=default["snippets_tokens"], help="to measure on")
    add("--seed", type=int, default=default["seed"], help="of weights, data and latents shown")


def _defaults(file: str, class_name: str) -> dict[str, str | None]:
    """Those of a configuration's fields, as written: argparse reads them like what is typed."""
    fields = fields_of(f"sae_lens_gba/{file}", class_name)
    return {field.name: field.default for field in fields}
