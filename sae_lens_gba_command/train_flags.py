"""Flags of ``sae-lens-gba train``: its own, a GBA SAE's, and those of SAELens' runner.

Of the latter two, the fields of the configurations are the flags.
"""

import argparse
import re
from dataclasses import replace
from typing import Any

from sae_lens_gba_command.dataclass_source import Field, fields_of, helps_of
from sae_lens_gba_command.parsers import Parser, is_given

# what makes a first run right, where SAELens' own default would not; measured by
# experiments/benchmarks/learning_rate.py
DEFAULTS = {
    "lr": "0.005",
    "lr_decay_steps": "a quarter of all steps",
    "l0_warm_up_steps": "all steps",
    "device": "cuda where there is a GPU, else cpu",
    "n_batches_in_buffer": "128",
    "n_batches_for_norm_estimate": "20",
    "exclude_special_tokens": "true",
    "dataset_trust_remote_code": "false",
    "verbose": "false",
}
OF_ALL_STEPS = {"lr_decay_steps": 1 / 4, "l0_warm_up_steps": 1}
NEEDED = {
    "model_name": "gpt2",
    "hook_name": "blocks.8.hook_resid_post",
    "dataset_path": "NeelNanda/pile-10k",
}
# file and class that declare an architecture's settings; all of ours have those of the first
_SAE_CLASSES = {
    "gba": ("sae_lens_gba/config.py", "GBATrainingSAEConfig"),
    "gba_transcoder": ("sae_lens_gba/transcoder_config.py", "GBATrainingTranscoderConfig"),
    "gba_skip_transcoder": ("sae_lens_gba/transcoder_config.py", "GBATrainingTranscoderConfig"),
}
_FIRST = (
    "model_name", "hook_name", "dataset_path", "d_sae", "target_l0", "training_tokens",
    "output_path", "lr", "train_batch_size_tokens", "device", "log_to_wandb",
)  # fmt: skip
# where SAELens says nothing, or what is not so of this command
_HELPS = {
    "d_in": "Input dimension; the model's, unless given.",
    "output_path": "Folder of the SAE; made if need be.",
    "log_to_wandb": "Log the run to Weights & Biases.",
    "wandb_project": "Project to log to.",
    "wandb_entity": "User or team whose project it is.",
    "wandb_id": "Id of a run to go on with.",
    "run_name": "Name of the run; made from its settings, unless given.",
    "model_class_name": "HookedTransformer, or AutoModelForCausalLM for what TransformerLens does "
    "not know and for models in folders.",
    "exclude_special_tokens": "Whether special tokens are left out; a list of ids only in Python.",
    "n_batches_for_norm_estimate": "How many batches to estimate the norm of the activations on.",
    "d_out": "Dimension of the target; the model's, unless given.",
}
_HIDDEN = ("hook_eval", "sae_lens_version", "sae_lens_training_version", "metadata", "sae.device")


def architecture_of(arguments: list[str]) -> str:
    """The architecture that the flags name; GBA if they name none."""
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--architecture", "--sae"):
            return value if equals else "".join(arguments[i + 1 : i + 2])
    return "gba"


def is_ours(architecture: str) -> bool:
    """Whether an architecture has groups of latents, and defaults of ours."""
    return architecture in _SAE_CLASSES


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that are this command's and not a field of a configuration."""
    add = parser.add_argument_group("the run").add_argument
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --output_path; if there is none, begin",
    )
    add("--overwrite", action="store_true", help="replace an earlier run in --output_path")
    add(
        "--checkpoint_minutes",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="between two checkpoints, the newest two of which stay until the run ends; 0 writes "
        "them only when the run is interrupted",
    )
    add("--report", action="store_true", help="leave charts of the run (needs matplotlib)")


def add_arguments(parser: argparse.ArgumentParser, architecture: str = "gba") -> None:
    """All flags of the command for an architecture of ours, the most used ones and ours first."""
    parser.usage = (
        "%(prog)s --model_name NAME --hook_name HOOK --dataset_path DATASET --target_l0 L0 "
        "[--d_sae N] [--output_path FOLDER] [more flags]"
    )
    sae, model, wandb = _sae_fields(architecture), _runner_fields(), _logger_fields()
    by_name = {field.name: field for field in [*sae, *model, *wandb]}
    first = parser.add_argument_group("what most runs set")
    for name in _FIRST:
        _add(first, by_name[name])
    add_own_arguments(parser)
    for title, fields in (
        ("the SAE", sae),
        ("model, text and training (SAELens)", model),
        ("Weights & Biases (SAELens)", wandb),
    ):
        group = parser.add_argument_group(title)
        for field in fields:
            if field.name not in _FIRST:
                _add(group, field)


def _sae_fields(architecture: str) -> list[Field]:
    base, own = _SAE_CLASSES["gba"], _SAE_CLASSES[architecture]
    helps = {
        name: text.replace(" Inherited from SAEConfig.", "")
        for name, text in {**helps_of(*base), **helps_of(*own)}.items()
    }
    taken = {field.name for field in _runner_fields()}
    fields = [
        Field("d_sae", "int", "1024", helps["d_sae"]),
        Field("d_in", "int", None, ""),
        *fields_of("sae_lens_gba/adaptation_settings.py", "AdaptationSettings"),
        *fields_of(*base),
        *(
            field
            for field in fields_of("sae_lens/saes/sae.py", "SAEConfig")
            if field.name not in ("d_in", "d_sae")
        ),
    ]
    by_name = {field.name: field for field in [*fields, *fields_of(*own)]}
    return [
        replace(
            field,
            name=f"sae.{name}" if name in taken else name,
            help=helps.get(name, field.help),
        )
        for name, field in by_name.items()
    ]


def _runner_fields() -> list[Field]:
    fields = fields_of("sae_lens/config.py", "LanguageModelSAERunnerConfig")
    which = Field("architecture", "str", "gba", "SAELens' others as well, each with its own flags.")
    needed = {name: f"Such as {example}." for name, example in NEEDED.items()}
    return [
        which,
        *(
            replace(field, default=None, help=needed[field.name]) if field.name in needed else field
            for field in fields
            if field.name not in ("sae", "logger")
        ),
    ]


def _logger_fields() -> list[Field]:
    return fields_of("sae_lens/config.py", "LoggingConfig")


def _add(group: argparse._ArgumentGroup, field: Field) -> None:
    default = field.default
    text = _HELPS.get(field.name, re.sub(r" ?\(default is [^)]*\)\.?", "", field.help))
    text = text or f"See SAELens' `{field.name}`."
    if field.name in DEFAULTS:
        text = f"{text} (A configuration made in Python has {default}.)"
        default = DEFAULTS[field.name]
    flags, settings = [f"--{field.name}"], dict[str, Any]()
    if field.name == "architecture":
        flags.append("--sae")
    if field.annotation == "bool":
        flags.append(f"--no{field.name}")
        settings["nargs"] = "?"
    elif field.annotation.endswith("None") and field.default != "None":
        settings["nargs"] = "?"  # without a value it is None
    elif field.annotation.startswith("tuple"):
        settings["nargs"] = "*"
    elif field.annotation in ("int", "float") and (default is None or default[0].isdigit()):
        settings["type"] = {"int": int, "float": float}[field.annotation]
    choices = field.choices
    group.add_argument(
        *flags,
        **settings,
        choices=choices,
        default=default,
        metavar=None if choices else field.annotation.split("[")[0].split(" ")[0].upper(),
        help=argparse.SUPPRESS if field.name in _HIDDEN else text.replace("%", "%%"),
    )


def check(arguments: list[str]) -> None:
    """What must be given is; ends the process with a sentence otherwise."""
    error = Parser(prog="sae-lens-gba train").error
    if not any(is_given(arguments, f"--{n}") for n in ("target_l0", "lowest_target_frequency")):
        error("--target_l0 is needed: how many latents should fire on a token; 16 to 128 is usual")
    needed = dict(NEEDED)
    if architecture_of(arguments) != "gba":
        needed["hook_name_out"] = "blocks.8.hook_mlp_out, where the transcoder's target is"
    for name, example in needed.items():
        if not is_given(arguments, f"--{name}"):
            error(f"--{name} is needed, such as {example}")
