"""The generated card, and how it is put beside what a person wrote.

When the card is changed on purpose, write the golden file anew and look at the difference:
``python -m tests.hub.test_model_card``.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from markdown_it import MarkdownIt

from sae_lens_gba import GBATrainingSAE, NeuronGroups
from sae_lens_gba.errors import InvalidPublicationError
from sae_lens_gba.hub.card_update import BEGIN, END, split_front_matter, update_card
from sae_lens_gba.hub.frequency_plot import save_frequency_plot
from sae_lens_gba.hub.model_card import CardEntry, card_body, front_matter, number
from tests.hub_fixtures import publish_to
from tests.local_hub import LocalHub

REPO = "user/gpt2-gba-saes"
GOLDEN = Path(__file__).with_name("golden_model_card.md")


def group_row(group: int, size: int, target: float, measured: float) -> dict[str, Any]:
    frequencies = {"target_frequency": target, "measured_frequency": measured}
    return {"group": group, "size": size, **frequencies}


def cfg(**changes: Any) -> dict[str, Any]:
    """cfg.json of a published SAE: 2 groups, L0 asked 2 * 0.25 + 6 * 0.05 = 0.8."""
    metadata = {
        "model_name": "openai-community/gpt2",
        "hook_name": "blocks.8.hook_resid_post",
        "dataset_path": "monology/pile-uncopyrighted",
        "context_size": 128,
        "sae_lens_training_version": "6.54.12",
        "l0": 0.7512,
        "num_dead_features": 1,
        "training_architecture": "gba",
        "training_architecture_details": {
            "target_l0": 0.8,
            "lowest_target_frequency": 1e-3,  # not used beside target_l0
            "tied": False,
            "dead_frequency": None,
        },
        "gba": {
            "version": "0.1.0",
            "run": {"training_tokens": 200_000, "lr": 0.005, "seed": 42},
            "groups": [group_row(0, 2, 0.25, 0.2437), group_row(1, 6, 0.05, 0.04996)],
            "evaluation": {"metrics/explained_variance": 0.71234567, "ce_loss_score": 0.93},
        },
        **changes.pop("metadata", {}),
    }
    stock = {"architecture": "jumprelu", "d_in": 4, "d_sae": 8, "dtype": "float32"}
    return {**stock, "metadata": metadata, **changes}


def entries() -> list[CardEntry]:
    unmeasured = cfg(
        metadata={
            "hook_name": "blocks.9.hook_resid_post",
            "l0": None,
            "num_dead_features": None,
            "neuronpedia_id": "gpt2-small/9-gba-res",
            "gba": {"version": "0.1.0", "groups": [group_row(0, 8, 0.1, 0.0)]},
        },
        architecture="standard",
    )
    return [
        CardEntry.from_cfg("layer_8", cfg(), "layer_8/frequencies.png"),
        CardEntry.from_cfg("layer_9", unmeasured, None),
    ]


def card() -> str:
    metadata = front_matter(REPO, entries(), license="mit")
    return update_card(None, metadata, card_body(REPO, entries(), license="mit"))


def test_the_card_is_the_golden_one() -> None:
    assert card() == GOLDEN.read_text(encoding="utf-8")


def test_the_front_matter_is_what_the_hub_reads() -> None:
    data: Any = ModelCard(card()).data
    assert data.library_name == "saelens"
    assert {"sparse-autoencoder", "saelens", "gba"} <= set(data.tags)
    assert data.base_model == "openai-community/gpt2"
    assert data.datasets == ["monology/pile-uncopyrighted"]
    assert data.license == "mit"
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    # L0: 2 * 0.2437 + 6 * 0.04996
    assert figures == {"l0": 0.78716, "explained_variance": 0.712346, "ce_recovered": 0.93}


def test_the_hub_accepts_the_front_matter(hub: LocalHub) -> None:
    with pytest.raises(ValueError, match='"tags" must be an array'):
        HfApi(endpoint=hub.endpoint)._validate_yaml("---\ntags: a\n---\n", repo_type="model")
    HfApi(endpoint=hub.endpoint)._validate_yaml(card(), repo_type="model")


def test_the_figures_are_those_of_the_configuration() -> None:
    measured, unmeasured = entries()
    assert measured.l0_asked == pytest.approx(2 * 0.25 + 6 * 0.05)
    assert measured.dead == 1
    # biases that were never adapted have not measured anything: no zeros in the card
    assert (unmeasured.l0, unmeasured.dead) == (None, None)
    assert unmeasured.groups[0]["measured_frequency"] is None
    assert unmeasured.explained_variance is None


def test_the_trainers_l0_stands_in_where_biases_were_never_adapted() -> None:
    content = cfg(metadata={"num_dead_features": None})
    for group in content["metadata"]["gba"]["groups"]:
        group["measured_frequency"] = 0.0
    entry = CardEntry.from_cfg("a", content, None)
    assert entry.l0 == 0.7512
    assert entry.dead is None


@pytest.mark.parametrize(
    ("evaluation", "l0", "dead"),
    [
        ({"sparsity": {"l0": 0.9}, "dead": 0}, 0.9, 0),
        ({"l0": 3}, 3, 1),
        ({"metrics/l0": 3.5}, 3.5, 1),
        ({"l0_like": 1.0, "l0": True}, 2 * 0.2437 + 6 * 0.04996, 1),
    ],
)
def test_an_evaluation_under_saelens_names_goes_before_the_trainers_figures(
    evaluation: dict[str, Any], l0: float, dead: int
) -> None:
    content = cfg()
    content["metadata"]["gba"]["evaluation"] = evaluation
    entry = CardEntry.from_cfg("a", content, None)
    assert entry.l0 == pytest.approx(l0)
    assert entry.dead == dead


def measured_cfg() -> dict[str, Any]:
    """The same SAE measured on held-out text, where all its figures are a little different."""
    content = cfg()
    content["metadata"]["gba"]["evaluation"] = {
        "schema_version": 1,
        "metrics": {
            "explained_variance": 0.69, "mean_squared_error": 3.0, "l0": 0.802, "l0_asked": 0.8,
            "dead": 2, "ce_loss_recovered": 0.91, "ce_loss_with_sae": 3.0,
            "ce_loss_without_sae": 2.9, "ce_loss_with_ablation": 4.0,
        },
        "group_frequency": [0.256, 0.0483],
        "provenance": {"dataset": "wikitext, split test", "n_tokens": 20000, "seed": 7},
        "weights_sha256": "00",
    }  # fmt: skip
    return content


@pytest.mark.parametrize("frequencies", [["a", "b"], {"a": 1, "b": 2}])
def test_frequencies_that_are_no_numbers_are_named(frequencies: Any) -> None:
    content = measured_cfg()
    content["metadata"]["gba"]["evaluation"]["group_frequency"] = frequencies
    with pytest.raises(TypeError, match="a frequency of a group is a str"):
        CardEntry.from_cfg("a", content, None)


def test_frequencies_of_other_groups_are_left_out() -> None:
    content = measured_cfg()
    content["metadata"]["gba"]["evaluation"]["group_frequency"] = [0.3, 0.2, 0.1]
    groups = CardEntry.from_cfg("a", content, None).groups
    assert [g["measured_frequency"] for g in groups] == [0.2437, 0.04996]


def test_of_a_measured_sae_every_figure_is_that_measurements() -> None:
    entry = CardEntry.from_cfg("a", measured_cfg(), None)
    assert (entry.l0, entry.explained_variance, entry.ce_recovered) == (0.802, 0.69, 0.91)
    assert entry.dead == 2
    # so the groups add up to the L0 of the table above them: 2 * 0.256 + 6 * 0.0483 = 0.8018
    total = sum(g["size"] * g["measured_frequency"] for g in entry.groups)
    assert total == pytest.approx(entry.l0, abs=1e-3)
    text = card_body(REPO, [entry])
    assert "`a` was measured on 20,000 tokens of wikitext, split test." in text
    assert "0.7512" not in text and "0.2437" not in text  # the trainer's
    assert "seed" not in entry.evaluation
    (result,) = front_matter(REPO, [entry])["model-index"][0]["results"]
    assert result["dataset"] == {
        "type": "unknown", "name": "20,000 tokens of wikitext, split test"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (3, "3"), (3.0, "3"), (0.123456, "0.1235"), (1e-7, "1e-07")],
)
def test_numbers_have_four_digits_at_most(value: float | None, text: str) -> None:
    assert number(value) == text


def test_several_models_and_no_license_are_said_plainly() -> None:
    other = CardEntry.from_cfg("b", cfg(metadata={"model_name": "user/other"}), None)
    both = [entries()[0], other]
    assert front_matter(REPO, both)["base_model"] == ["openai-community/gpt2", "user/other"]
    assert "license" not in front_matter(REPO, both)
    assert "None is stated yet" in card_body(REPO, both)
    assert front_matter(REPO, both, base_model="user/base")["base_model"] == "user/base"


def test_an_sae_that_does_not_say_its_model_and_hook_gets_a_card() -> None:
    content = cfg()
    del content["metadata"]["model_name"], content["metadata"]["hook_name"]
    entry = CardEntry.from_cfg("a", content, None)
    assert "base_model" not in front_matter(REPO, [entry])
    assert front_matter(REPO, [*entries(), entry])["base_model"] == "openai-community/gpt2"
    assert "| `a` | `?` | 8 |" in card_body(REPO, [entry])


# --- beside what a person wrote ---

BY_HAND = """---
license: apache-2.0
tags:
- my-tag
- gba
---
# My SAEs

Written by hand.
"""


def test_a_card_written_by_a_person_keeps_every_word() -> None:
    new = update_card(BY_HAND, front_matter(REPO, entries(), license=None), "generated")
    data, text = split_front_matter(new)
    assert text.strip() == f"# My SAEs\n\nWritten by hand.\n\n{BEGIN}\ngenerated\n{END}"
    assert data["license"] == "apache-2.0"
    assert data["tags"][:2] == ["my-tag", "gba"]
    assert data["tags"].count("gba") == 1
    assert data["library_name"] == "saelens"


def test_only_the_generated_section_is_replaced() -> None:
    first = update_card(BY_HAND, {"library_name": "saelens"}, "one")
    edited = first + "\nA last word.\n"
    second = update_card(edited, {"library_name": "saelens"}, "two")
    assert second == edited.replace("\none\n", "\ntwo\n")


def test_updating_with_the_same_changes_nothing() -> None:
    metadata = front_matter(REPO, entries(), license="mit")
    body = card_body(REPO, entries(), license="mit")
    for existing in (None, BY_HAND, "no front matter", "---\n---\n"):
        once = update_card(existing, metadata, body)
        assert update_card(once, metadata, body) == once


def test_old_figures_do_not_stay_in_the_model_index() -> None:
    once = update_card(None, front_matter(REPO, entries()), "x")
    assert "model-index" in split_front_matter(once)[0]
    without = update_card(once, front_matter(REPO, entries()[1:]), "x")
    assert "model-index" not in split_front_matter(without)[0]


def test_a_license_that_is_asked_for_replaces_the_one_there() -> None:
    new = update_card(BY_HAND, {"license": "mit"}, "x", explicit=["license"])
    assert split_front_matter(new)[0]["license"] == "mit"


# what PyYAML meets with errors that are none of its own
ODD_YAML = ["2024-13-45", "!!bool x", "!!timestamp x", "!!int x", "[" * 5000]


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("---\n: [\n---\n", "no valid YAML"),
        *((f"---\na: {odd}\n---\n", "no valid YAML") for odd in ODD_YAML),
        ("---\n- a\n---\n", "no list of 'field: value'"),
        (f"{BEGIN}\n", "1 begin and 0 end markers"),
        (f"{END}\n{BEGIN}\n", "1 begin and 1 end markers"),
        (f"{BEGIN}{END}{BEGIN}{END}", "2 begin and 2 end markers"),
    ],
)
def test_a_card_that_can_not_be_updated_safely_is_left_alone(existing: str, message: str) -> None:
    with pytest.raises(InvalidPublicationError, match=message):
        update_card(existing, {}, "x")


def test_publishing_beside_a_persons_card_keeps_it(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE
) -> None:
    hub.create(REPO).commit("main", {"README.md": BY_HAND.encode()}, "by hand")
    publish_to(hub, {"a": jumprelu_sae}, REPO, license=None)
    published = hub.repos[REPO].files()["README.md"].decode()
    assert "# My SAEs\n\nWritten by hand.\n" in published
    data = yaml.safe_load(published.split("---\n")[1])
    assert data["license"] == "apache-2.0"
    assert "`apache-2.0`. The license of the base model" in published


def test_a_broken_card_on_the_hub_is_not_replaced(
    hub: LocalHub, jumprelu_sae: GBATrainingSAE
) -> None:
    hub.create(REPO).commit("main", {"README.md": b"---\n: [\n---\nmine"}, "by hand")
    before = hub.snapshot()
    with pytest.raises(InvalidPublicationError, match="fix it there"):
        publish_to(hub, {"a": jumprelu_sae}, REPO, license=None)
    assert hub.snapshot() == before


# --- what others wrote ---

HOSTILE = [
    "a\n\n# Heading",
    "a\r\n\r\n<h1>Heading</h1>",
    "<script>alert(1)</script>",
    "`<script>alert(1)</script>`",
    "``` <img src=x onerror=alert(1)>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](javascript:alert(1))",
    "x | y | `<b>` | \\| z",
    "</code></summary></details><script>",
    "--- \n---\n",
    f"a {END} b",
    f"{BEGIN}\n{END}",
    "a\N{RIGHT-TO-LEFT OVERRIDE}b\x00c",
    "a\ud800b",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 100_000,
]
_ALLOWED_HTML = {"<details>", "</details>", "<summary>", "</summary>", "<code>", "</code>"}


def hostile_entries(text: str) -> list[CardEntry]:
    content = cfg(
        architecture=text,
        dtype=text,
        metadata={
            "model_name": text,
            "hook_name": text,
            "dataset_path": text,
            "neuronpedia_id": text,
            "sae_lens_training_version": text,
            "training_architecture_details": {"n_groups": text, text: 1},
            "gba": {
                "version": text,
                "groups": [group_row(0, 8, 0.1, 0.1)],
                "evaluation": {text: 1.0, "l0": 2.0},
            },
        },
    )
    return [CardEntry.from_cfg(text, content, f"{text}/plot.png"), entries()[0]]


def elements(body: str) -> tuple[list[str], set[str], list[str], int]:
    """Headings, HTML tags, addresses and tables' rows of a card, as a browser would see them."""
    headings, tags, addresses, rows = [], set(), [], 0
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    for before, token in zip([tokens[0], *tokens], tokens, strict=False):
        if token.type == "html_block":
            tags |= set(re.findall(r"<[^>]*>", token.content))
        if token.type == "inline" and before.type == "heading_open":
            headings.append(token.content)
        rows += token.type == "tr_open"
        for child in token.children or []:
            tags |= {child.content} if child.type == "html_inline" else set()
            address = child.attrs.get("href") or child.attrs.get("src")
            addresses += [str(address)] if address else []
    return headings, tags, addresses, rows


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_stays_text(text: str) -> None:
    body = card_body(REPO, hostile_entries(text), license="mit")
    expected = elements(card_body(REPO, hostile_entries("harmless"), license="mit"))
    headings, tags, addresses, rows = elements(body)
    assert len(headings) == len(expected[0])
    assert tags <= _ALLOWED_HTML | {BEGIN, END}
    assert rows == expected[3]
    assert all(not a.startswith("javascript") for a in addresses)
    assert len(addresses) == len(expected[2])
    # and the card can be written, read, and put in place anew
    metadata = front_matter(REPO, hostile_entries(text), license="mit")
    once = update_card(BY_HAND, metadata, body)
    assert update_card(once, metadata, body) == once
    data: Any = ModelCard(once).data
    assert data.library_name == "saelens"
    once.encode()


def test_a_row_that_is_no_group_is_refused_where_it_is_read() -> None:
    for name, value in (("size", 10**12), ("target_frequency", "a"), ("measured_frequency", [1])):
        content = cfg()
        content["metadata"]["gba"]["groups"][0][name] = value
        content["metadata"]["gba"]["groups"][0]["target_frequency"] = "a"
        with pytest.raises(TypeError, match="of a group is a"):
            CardEntry.from_cfg("a", content, None)


# --- the plot ---


@pytest.mark.usefixtures("with_plots")
def test_the_plot_is_a_png_that_depends_on_the_groups_alone(tmp_path: Path) -> None:
    groups = NeuronGroups(
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0.25, 0.25, 0.05, 0.05]),
        torch.tensor([0.2, 0.3, 0.0, 0.07]),
    )
    for name in ("a.png", "b.png"):
        assert save_frequency_plot(groups, tmp_path / name, "an SAE")
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "b.png").read_bytes()
    assert b"Matplotlib" not in first


if __name__ == "__main__":
    GOLDEN.write_text(card(), encoding="utf-8")


def test_what_stands_in_a_list_of_the_card_may_be_anything() -> None:
    card = update_card("---\ndatasets:\n- {name: x}\n---\n", {"datasets": ["a/b"]}, "x")
    assert split_front_matter(card)[0]["datasets"] == [{"name": "x"}, "a/b"]
