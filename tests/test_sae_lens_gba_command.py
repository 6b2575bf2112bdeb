"""The command's answers that need no SAE: help, versions, mistakes, completion."""

import ast
import logging
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import simple_parsing

from sae_lens_gba.cli import _messages_on_the_console
from sae_lens_gba.demo.config import DemoConfig
from sae_lens_gba.distributed.plan import Plan
from sae_lens_gba.report.collect import ReportConfig
from sae_lens_gba.runs.resumable import CHECKPOINT_MINUTES
from sae_lens_gba_command import COMMANDS, main
from sae_lens_gba_command.parsers import Parser, flags_as_declared
from sae_lens_gba_command.train_flags import DEFAULTS, add_arguments

NEEDED = ["--model_name", "gpt2", "--hook_name", "h", "--dataset_path", "d"]
ROOT = Path(__file__).parent.parent


def output_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "put trained SAEs on the Hugging Face Hub"),
        ([], 0, "put trained SAEs on the Hugging Face Hub"),
        (["--version"], 0, version("sae-lens-gba")),
        (["trian"], 2, "did you mean train?"),
        (["train"], 0, "what most runs set"),
        (["train", "--targt-l0", "3"], 2, "did you mean --target_l0?"),
        (["train", "--target-l0", "3", "--d_sae", "many"], 2, "--d_sae: invalid int value: 'many'"),
        (["train", *NEEDED], 2, "--target_l0 is needed: how many latents"),
        (["train", "--target_l0", "3", *NEEDED[2:]], 2, "--model_name is needed, such as gpt2"),
        (["train", "--target_l0", "3", *NEEDED[:4]], 2, "--dataset_path is needed"),
        (
            ["train", "--target_l0", "3", *NEEDED[:4], "--use_cached_activations", "true"],
            2,
            "--dataset_path is needed",  # SAELens wants it with cached activations as well
        ),
        (["publish", "--help"], 0, "write the files, show them, send nothing"),
        (["report", "--help"], 0, "of text to read (default: 100000)"),
        (["look", "--help"], 0, "of this machine; 0 takes a free one (default: 8123)"),
        (["plan", "--help"], 0, "--nested NESTED"),
        (["demo", "--help"], 0, "(default: demo_output)"),
        (["publish"], 2, "required: repo_id, [ID=]FOLDER"),
        (["report", "my_sae", "--token", "9"], 2, "sae-lens-gba report: unrecognized arguments"),
        (["report", "my_sae", "--token", "9"], 2, "did you mean --tokens?"),
        (["look", "my_sae", "--port", "http"], 2, "--port: invalid int value: 'http'"),
        (["plan", "--d-in", "8"], 2, "required: --d-sae, --batch"),
        (
            ["train", "--architecture", "gba_transcoder", "--target_l0", "3", *NEEDED],
            2,
            "--hook_name_out is needed, such as blocks.8.hook_mlp_out, where",
        ),
        (["train", "--architecture=gba_skip_transcoder", "--help"], 0, "--hook_name_out STR"),
        (["completion", "fish"], 2, "invalid choice: 'fish'"),
    ],
)
def test_what_it_says_without_torch(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "sae_lens_gba.cli", None)  # an import of it would fail
    got, text = output_of(arguments, capsys)
    assert (got, said in text) == (code, True), text


def test_nothing_but_the_standard_library_is_imported() -> None:
    script = "import sys, sae_lens_gba_command as c; c._parser(True); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert not loaded & {"torch", "sae_lens", "sae_lens_gba", "transformers", "numpy"}


def test_the_help_has_ours_first_and_says_each_default_of_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = " ".join(output_of(["train", "--help"], capsys)[1].split())
    assert text.index("--target_l0 FLOAT") < text.index("--n_groups") < text.index("--adam_beta1")
    parser = Parser()
    add_arguments(parser)
    for name, value in DEFAULTS.items():
        action = parser._option_string_actions[f"--{name}"]
        assert action.help is not None
        assert f"{action.help} (default: {value})" in text, name


@pytest.mark.parametrize("architecture", ["gba", "gba_transcoder", "gba_skip_transcoder"])
def test_the_flags_are_those_that_saelens_would_take(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.llm_sae_training_runner import _parse_cfg_args

    theirs: dict[str, Any] = {}
    parse_args = simple_parsing.ArgumentParser.parse_args

    def spy(self: Any, *args: Any, **settings: Any) -> Any:
        namespace = parse_args(self, *args, **settings)
        theirs.update(self._option_string_actions)
        return namespace

    monkeypatch.setattr(simple_parsing.ArgumentParser, "parse_args", spy)
    _parse_cfg_args(["--architecture", architecture])
    parser = Parser()
    add_arguments(parser, architecture)
    ours = parser._option_string_actions
    own = {"--resume", "--overwrite", "--checkpoint_minutes", "--report"}
    assert set(ours) - own == set(theirs)
    for flag, action in ours.items():
        differs = {*DEFAULTS, "d_in", "model_name", "hook_name", "metadata", "dataset_path"}
        if flag in own or action.dest in {*differs, "architecture", "sae"}:
            continue
        if "version" not in flag and action.default is not None:
            assert str(action.default) == str(theirs[flag].default), flag


def test_defaults_are_those_of_the_configurations() -> None:
    def given(command: str, *arguments: str) -> dict[str, Any]:
        parser = Parser()
        COMMANDS[command].add_arguments(parser)
        return vars(parser.parse_args(arguments))

    report = given("report", "my_sae")
    names = {field.name for field in fields(ReportConfig)}
    assert ReportConfig(**{name: report[name] for name in names}) == ReportConfig()
    assert DemoConfig(**given("demo")) == DemoConfig()
    needed = {"d_in": 8, "d_sae": 16, "batch": 8}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in needed.items()]
    assert Plan(**given("plan", *flags)) == Plan(**needed, devices=8)
    assert given("train")["checkpoint_minutes"] == CHECKPOINT_MINUTES
    assert report["device"] is given("look", "my_sae")["device"] is None  # the best there is


def test_dashes_and_underscores_are_one() -> None:
    assert flags_as_declared(["train", "--target-l0=3", "a-b"]) == ["train", "--target_l0=3", "a-b"]
    assert flags_as_declared(["report", "--ce_tokens", "1"]) == ["report", "--ce-tokens", "1"]


def test_other_libraries_speak_once(capsys: pytest.CaptureFixture[str]) -> None:
    # huggingface_hub says "Retrying ..." by a handler of its own, and to the root's handlers
    other, ours = logging.getLogger("another_library"), logging.getLogger("sae_lens_gba.hub")
    own = logging.StreamHandler()
    other.addHandler(own)
    with _messages_on_the_console():
        other.warning("retrying")
        ours.info("published")
    ours.info("later")
    other.removeHandler(own)
    assert sorted(capsys.readouterr().err.split()) == ["published", "retrying"]


def test_tab_completion(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = output_of(["completion", "bash"], capsys)
    if find_spec("shtab") is None:
        assert (code, "pip install 'sae-lens-gba[completion]'" in text) == (1, True)
    else:
        assert (code, "--target_l0" in text) == (0, True)
