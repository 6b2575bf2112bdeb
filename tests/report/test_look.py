"""`sae-lens-gba look`: answers what the SAE does on a text, to this machine alone."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from sae_lens_gba.report.look import HOST, MAX_BYTES, Reader, make_server
from sae_lens_gba.sources import load_model_of, load_saes
from tests.one_latent_a_word import CONTEXT_SIZE, save_sae
from tests.report.test_browser import eventually
from tests.report.test_command import run

WORDS = "word5 word7 word5"  # tokens 7, 9, 7


@pytest.fixture(scope="module")
def sae_dir(model: Any, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SAE with a latent a word, and its report."""
    folder = tmp_path_factory.mktemp("look") / "sae"
    save_sae(folder, model.W_E.detach().float())
    text = folder / "text.txt"
    text.write_text(f"{WORDS} word1 <script>window.attacked=1</script>\n" * 60)
    (folder / "said.json").write_text('{"7": "the <i>sixth</i> word"}')
    run(
        str(folder), "--model", str(model_folder), "--dataset", str(text), "--tokens", "320",
        "--ce-tokens", "0", "--explanations", str(folder / "said.json"),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def port(sae_dir: Path, model_folder: Path) -> Iterator[int]:
    server = make_server(sae_dir, str(model_folder), "cpu", port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert server.server_address[0] == "127.0.0.1"
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection(HOST, port, timeout=30)
    headers = {"Content-Type": "application/json", **headers}
    content = body if isinstance(body, bytes) or body is None else json.dumps(body)
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_a_tokenizer_may_have_no_bos(sae_dir: Path, model_folder: Path) -> None:
    (saved,) = load_saes([sae_dir])
    model = load_model_of(saved.sae, str(model_folder), "cpu")
    model.tokenizer.bos_token = None
    assert Reader(model, saved).read(WORDS).tokens[-3:] == WORDS.split()


def test_only_the_positions_that_it_was_trained_on_are_read(
    sae_dir: Path, model_folder: Path
) -> None:
    (saved,) = load_saes([sae_dir])
    saved.sae.cfg.metadata.seqpos_slice = (2, None)
    reader = Reader(load_model_of(saved.sae, str(model_folder), "cpu"), saved)
    answer = reader.read(WORDS)
    assert answer.tokens == WORDS.split()[1:]
    assert {one.latent for one in answer.latents} == {7, 9}
    assert reader.read("").tokens == []


def test_the_latents_of_the_words_fire_on_them(port: int) -> None:
    status, content = ask(port, "POST", "/read", {"text": WORDS})
    answer = json.loads(content)
    assert status == 200
    assert answer["tokens"] == ["<s>", "word5", "word7", "word5"]
    assert answer["special"] == [0]
    assert (answer["l0"], answer["n_left_out"]) == (1.0, 0)
    found = {one["latent"]: one["activations"] for one in answer["latents"]}
    assert found == {
        7: pytest.approx([0, 1, 0, 1], abs=1e-3), 9: pytest.approx([0, 0, 1, 0], abs=1e-3)
    }  # fmt: skip


def test_an_sae_of_a_model_that_transformers_loaded(
    model: Any, model_folder: Path, tmp_path: Path
) -> None:
    names = {"hook_name": "model.embed_tokens", "model_class_name": "AutoModelForCausalLM"}
    (saved,) = load_saes([save_sae(tmp_path / "sae", model.W_E.detach().float(), **names)])
    answer = Reader(load_model_of(saved.sae, str(model_folder)), saved).read(WORDS)
    assert answer.tokens == ["<s>", "word5", "word7", "word5"]
    assert (answer.l0, sorted(found.latent for found in answer.latents)) == (1.0, [7, 9])


def test_a_long_text_is_cut_and_it_is_said(port: int) -> None:
    _, content = ask(port, "POST", "/read", {"text": "word5 " * 20})
    answer = json.loads(content)
    assert len(answer["tokens"]) == CONTEXT_SIZE
    assert answer["n_left_out"] == 21 - CONTEXT_SIZE
    assert ask(port, "POST", "/read", {"text": "  "}) == (200, b"null")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {"Host": "attacker.example"}, 403),
        ("POST", "/read", {"text": "a"}, {"Host": "attacker.example"}, 403),
        ("POST", "/read", {"text": "a"}, {"Content-Type": "text/plain"}, 404),
        ("POST", "/read", b"[", {}, 400),
        ("POST", "/read", {"words": "a"}, {}, 400),
        ("POST", "/read", {"text": "a" * MAX_BYTES}, {}, 413),
        ("GET", "/sae_weights.safetensors", None, {}, 404),
        ("GET", "/report_latents/../cfg.json", None, {}, 404),
    ],
)
def test_nothing_else_is_answered(
    port: int, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    assert ask(port, method, path, body, **headers)[0] == status


def test_a_port_that_is_taken_is_named(port: int, sae_dir: Path, model_folder: Path) -> None:
    with pytest.raises(OSError, match=rf"port={port} is not available .*--port"):
        make_server(sae_dir, str(model_folder), "cpu", port)
    with pytest.raises(OSError, match=r"port=99999 is not available .*--port"):
        make_server(sae_dir, str(model_folder), "cpu", 99_999)
    with pytest.raises(ValueError, match="device='cuda:77' is not possible here"):
        make_server(sae_dir, str(model_folder), "cuda:77", 0)


def test_a_text_is_tried_in_the_browser(browser: Any, port: int) -> None:
    browser.get_log("browser")
    browser.get(f"http://{HOST}:{port}/")
    browser.find_element(By.ID, "text").send_keys(WORDS)
    browser.find_element(By.CSS_SELECTOR, "button").click()
    eventually(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".found"))
    titles = [h.text for h in browser.find_elements(By.CSS_SELECTOR, ".found h3")]
    assert sorted(title.split(" (")[0] for title in titles) == [
        "latent 7 the <i>sixth</i> word", "latent 9 word7"
    ]  # fmt: skip
    # the report has details of them all
    assert "shows every latent" in browser.find_element(By.TAG_NAME, "body").text
    assert "4 tokens, L0 1" in browser.find_element(By.ID, "status").text
    browser.get(browser.find_element(By.CSS_SELECTOR, ".found a").get_attribute("href"))
    eventually(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "dialog .context"))
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.attacked") is None


def test_the_report_of_an_sae_that_is_gone_is_not_used(
    sae_dir: Path, model: Any, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(sae_dir, tmp_path / "sae"))
    save_sae(folder, model.W_E.detach().float().flip(0)[:20])
    with make_server(folder, str(model_folder), "cpu", port=0):
        assert "the report is left out" in caplog.text
