"""README, docs and notebooks: code runs, tables are the results', links lead somewhere."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from datasets import Dataset
from nbclient import NotebookClient

from experiments import tables
from experiments.lab.results import RESULTS
from sae_lens_gba import GBATrainingSAE, cli
from sae_lens_gba_command import COMMANDS, train_flags
from sae_lens_gba_command.parsers import Parser, flags_as_declared
from tests.toolbox import D_MODEL, make_trainer, tiny_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
BLOCK = re.compile(r"(<!-- not run: (.+) -->\n)?```(python|bash)\n(.*?)```", re.DOTALL)
# run by test_examples.py
EXAMPLE = re.compile(r"<!-- example: .*?<!-- end of example -->", re.DOTALL)
# the settings of a language model's run, at a size for tests
SMALLER = {
    "d_in=768": f"d_in={D_MODEL}", "d_sae=24_576": "d_sae=64", "d_sae=16_384": "d_sae=64",
    "target_l0=32": "target_l0=4", '"my_sae", 16)': '"my_sae", 2)', "target_l0=16": "target_l0=4",
    "blocks.8": "blocks.0", "training_tokens=20_000_000": "training_tokens=8192, context_size=16,"
    " train_batch_size_tokens=128", "20_000_000 // 4096": "8192 // 128",
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    """Code of a page that is not marked with the reason why it is not run."""
    found = BLOCK.findall(EXAMPLE.sub("", page.read_text()))
    return [code for _, reason, kind, code in found if kind == language and not reason]


@pytest.fixture
def tiny_hub(
    monkeypatch: pytest.MonkeyPatch, tiny_hooked_transformer: Any, tiny_texts: Dataset
) -> None:
    """Every model and data set on the Hub is the tests' tiny one."""
    runner = "sae_lens.llm_sae_training_runner.load_model"
    monkeypatch.setattr(runner, lambda *_, **__: tiny_hooked_transformer)
    store = "sae_lens.training.activations_store.load_dataset"
    monkeypatch.setattr(store, lambda *_, **__: tiny_texts)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SAE in the folder that pages load from."""
    monkeypatch.chdir(tmp_path)
    sae = GBATrainingSAE(tiny_config(d_in=D_MODEL))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.cfg.metadata.model_name = "gpt2"
    make_trainer(sae, 60).fit()
    sae.save_inference_model("my_sae")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_the_python_of_a_page_runs(page: Path, saved: None, tiny_hub: None) -> None:
    shared: dict[str, object] = {}
    for code in blocks(page, "python"):
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        exec(compile(code, page.name, "exec"), shared)


def test_every_command_of_readme_and_docs_is_one_that_there_is() -> None:
    text = "\n".join(code for page in PAGES for code in blocks(page, "bash"))
    commands = [line.split()[1:] for line in text.replace("\\\n", " ").splitlines() if line]
    assert {command[0] for command in commands} >= {"train", "publish", "report"}
    for name, *arguments in commands:
        declared = flags_as_declared([name, *arguments])
        if name == "train":
            train_flags.check(declared[1:])
            cfg = cli._config(declared[1:], is_ours=True)
            assert cfg.sae.d_sae
        else:
            parser = Parser()
            COMMANDS[name].add_arguments(parser)
            parser.parse_args(declared[1:])


def test_every_table_is_that_of_its_result_and_every_example_its_file() -> None:
    assert tables.main(["--check"]) == 0, "make docs"


def test_a_table_that_differs_from_its_result_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: other_l0 -->\n| 1 |\n<!-- end of table -->\n")
    assert tables.main(["--check", str(page)]) == 1
    assert "differs from its sources" in capsys.readouterr().out
    assert tables.main([str(page)]) == 0
    assert page.read_text() in (ROOT / "docs" / "results.md").read_text()
    assert tables.main(["--check", str(page)]) == 0


def test_a_result_that_is_not_there_yet_is_said_to_be_missing(tmp_path: Path) -> None:
    text = "<!-- table: torture -->\n<!-- end of table -->"
    assert tables.NOT_MEASURED in tables.fill(text, tmp_path)
    rows = [{"fault": "killed", "tried": 3, "survived": 2, "lost": 1, "what_was_lost": ["all"]}]
    (tmp_path / "torture").mkdir()
    for module in ("storage", "soak"):
        (tmp_path / "torture" / f"{module}.json").write_text(json.dumps({"rows": rows}))
    assert tables.fill(text, tmp_path).count("| killed | 3 | 2 | 1 |") == 2


def test_the_readmes_sentence_on_l0_is_what_was_measured() -> None:
    rows = json.loads((RESULTS / "l0_control.json").read_text())["rows"]
    ours = [row for row in rows if "as published" not in row["case"]]
    worst, n = 100 * max(abs(row["miss"]) for row in ours), len({row["case"] for row in ours})
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"within {worst:.1f} % on held-out samples over {n} conditions" in readme
    misses = {
        name: max(
            abs(row["l0"] / row["asked_l0"] - 1)
            for row in json.loads((RESULTS / f"language_model_comparison{name}.json").read_text())[
                "rows"
            ]
            if row["method"] == "gba"
        )
        for name in ("", "_mlp", "_wide", "_wide_64", "_wide_long")
    }
    other_text = max(misses.pop(name) for name in ("_wide", "_wide_64", "_wide_long"))
    said = f"within {100 * max(misses.values()):.1f} % on held-out documents of a language model, "
    assert said + f"and up to {100 * other_text:.0f} % off on another mix of text" in readme


def test_the_readme_is_short_and_so_is_its_main_example() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 120
    assert len([line for line in blocks(readme, "python")[0].splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_and_make_targets_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_notebooks_run(tmp_path: Path) -> None:
    cells = []
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert all(not cell.get("outputs") for cell in notebook.cells)  # committed without output
        notebook.cells[1].source = re.sub(r"STEPS = \d+", "STEPS = 200", notebook.cells[1].source)
        # one kernel for all, as importing takes longest; nothing of one is left for the next
        cells += [nbformat.v4.new_code_cell("%reset -f"), *notebook.cells]
    notebook.cells = cells
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    assert (tmp_path / "my_sae" / "cfg.json").is_file()
