"""``sae-lens-gba look``: what an SAE's latents do on text that you type, in the browser.

A small server for one person on this machine: it listens on 127.0.0.1 alone, and answers no page
but its own.
"""

import argparse
import json
import logging
import secrets
import threading
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from sae_lens_gba.errors import DamagedFileError
from sae_lens_gba.report.command import HTML_NAME
from sae_lens_gba.report.details import Tokens
from sae_lens_gba.report.html import environment
from sae_lens_gba.report.latent_files import latents_folder
from sae_lens_gba.report.page_data import headline
from sae_lens_gba.report.results import Report, SaeResult, significant
from sae_lens_gba.report.text_stream import activations_on, open_text
from sae_lens_gba.saved.evaluation import read_evaluation
from sae_lens_gba.saved.saved_sae import SavedSAE
from sae_lens_gba.sources import best_device, load_model_of, load_saes

HOST = "127.0.0.1"
MAX_BYTES = 100_000  # of a request
N_LATENTS = 40

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A latent that fires on the text.

    Attributes:
        latent: its index.
        activations: on each token, 0 on special ones.
    """

    latent: int
    activations: list[float]


@dataclass(frozen=True)
class Answer:
    """What an SAE does on a text.

    Attributes:
        tokens: the text's, as the model reads it.
        special: indices into tokens of special tokens.
        n_left_out: tokens beyond the SAE's context size, which were not read.
        l0: mean number of active latents per token, without special tokens.
        latents: those with the largest activations, largest first; each by its own largest in
            the report, if there is one.
    """

    tokens: list[str]
    special: list[int]
    n_left_out: int
    l0: float
    latents: list[Found]


class Reader:
    """Reads texts with a model and an SAE, one at a time.

    Args:
        largest: each latent's largest activation elsewhere, shape (d_sae,): the unit in which
            latents are compared.
    """

    def __init__(self, model: Any, saved: SavedSAE, largest: torch.Tensor | None = None) -> None:
        self._model, self._saved = model, saved
        self._unit = torch.ones(saved.d_sae) if largest is None else largest
        self._tokens = Tokens(model.tokenizer)
        # SAELens' own way from tokens to activations; the text is given later
        self._store = open_text(model, saved, Dataset.from_dict({"text": [""]}))
        self._lock = threading.Lock()

    @torch.no_grad()
    def read(self, text: str) -> Answer:
        """What the SAE does on a text, of which it reads at most its context size."""
        prepend_bos = bool(self._saved.sae.cfg.metadata.prepend_bos)
        with self._lock:
            # as SAELens' store asks: models of transformers take no other way
            ids = self._model.to_tokens(
                text, prepend_bos=False, truncate=False, move_to_device=False
            )
            bos_token_id = self._model.tokenizer.bos_token_id
            if prepend_bos and bos_token_id is not None:  # some tokenizers have none
                bos = torch.full((1, 1), bos_token_id)
                ids = torch.cat([bos, ids.long()], dim=1)
            n_left_out = max(0, ids.shape[1] - self._store.context_size)
            ids = ids[:, : self._store.context_size].to(self._store.device)
            sae = self._saved.sae
            acts = sae.encode(activations_on(self._store, ids)[0].to(sae.dtype))
            ids = ids[:, slice(*self._store.seqpos_slice)]  # the positions that it was trained on
        acts = (acts.to_dense() if acts.is_sparse else acts).float().abs().cpu()
        tokens = ids[0].tolist()
        if not tokens:  # too short a text for the positions that the SAE was trained on
            return Answer([], [], n_left_out, 0.0, [])
        special = [i for i, token in enumerate(tokens) if token in self._tokens.special]
        acts[special] = 0
        # a latent that was silent in the report is the news here
        strength = acts.amax(dim=0) / self._unit.clamp(min=1e-9)
        strongest = strength.topk(min(N_LATENTS, acts.shape[1])).indices.tolist()
        return Answer(
            tokens=self._tokens.read_in_a_row(tokens),
            special=special,
            n_left_out=n_left_out,
            l0=significant(float((acts > 0).sum()) / max(len(tokens) - len(special), 1)),
            latents=[
                Found(latent, [significant(a) for a in acts[:, latent].tolist()])
                for latent in strongest
                if acts[:, latent].any()
            ],
        )


class Handler(BaseHTTPRequestHandler):
    """Answers the page, and nobody else's."""

    def __init__(self, reader: Reader, page: bytes, report: Path, *args: Any) -> None:
        self.reader, self.page, self.report = reader, page, report
        super().__init__(*args)

    def do_GET(self) -> None:
        """The page, and the report beside the SAE, if there is one."""
        if not self._is_for_us():
            return
        folder = latents_folder(self.report)
        files = {f"/{self.report.name}": self.report}
        files |= {f"/{folder.name}/{path.name}": path for path in folder.glob("*.js")}
        if self.path == "/":
            self._answer(self.page, "text/html")
        elif self.path in files and files[self.path].is_file():
            kind = "text/html" if self.path.endswith(".html") else "text/javascript"
            self._answer(files[self.path].read_bytes(), kind)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """``/read``: a JSON object with the text, answered by an `Answer`."""
        if not self._is_for_us():
            return
        length = int(self.headers.get("Content-Length") or 0)
        # another site's form could not send this type
        if self.path != "/read" or self.headers.get("Content-Type") != "application/json":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif length > MAX_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._read(self.rfile.read(length))

    def _read(self, request: bytes) -> None:
        try:
            text = str(json.loads(request)["text"])
        except (KeyError, TypeError, ValueError):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        answer = asdict(self.reader.read(text)) if text.strip() else None
        self._answer(json.dumps(answer).encode(), "application/json")

    def _is_for_us(self) -> bool:
        """A name that only leads to this machine may come from another site's page."""
        _, port = self.request.getsockname()
        if self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}"):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def make_server(sae_dir: Path, model: str | None, device: str, port: int) -> ThreadingHTTPServer:
    """A server for an SAE, not serving yet.

    Args:
        sae_dir: folder that SAELens saved an SAE in; a report made there lends it its words.
        model: hub name or folder; None is the SAE's own.
        port: of 127.0.0.1; 0 takes a free one.

    Raises:
        OSError: the port is taken, or none.
        FileNotFoundError, ValueError: see `load_saes` and `load_model_of`.
    """
    (saved,) = load_saes([sae_dir], device)
    path = sae_dir / HTML_NAME
    report = None
    if path.is_file() and _is_measured(sae_dir):
        report = Report.load(path.with_suffix(".json")).saes[0]
    largest = None if report is None else torch.tensor(report.latents.max_activation)
    reader = Reader(load_model_of(saved.sae, model, device), saved, largest)
    handler = partial(Handler, reader, _page(saved, report).encode(), path)
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"port={port} is not available ({error}): give another with --port."
        ) from error


def _is_measured(sae_dir: Path) -> bool:
    """Whether the report there is of the SAE that is there now, and of no earlier one."""
    try:
        return read_evaluation(sae_dir) is not None
    except DamagedFileError as error:
        _log.warning("the report is left out: %s", error)
        return False


def _page(saved: SavedSAE, report: SaeResult | None) -> str:
    """The page, in which latents have the report's words."""
    names: dict[int, str] = {}
    if report is not None:
        names = {d.latent: headline(d) for d in report.details} | report.explanations
    return (
        environment()
        .get_template("look.html.jinja")
        .render(
            saved=saved,
            metadata=saved.sae.cfg.metadata,
            nonce=secrets.token_urlsafe(16),
            all_latents=report is not None and len(report.details) == saved.d_sae,
            data={"names": names, "report": None if report is None else HTML_NAME},
        )
    )


def run_from_arguments(arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    device = arguments.device or best_device()
    server = make_server(arguments.sae_dir, arguments.model, device, arguments.port)
    with server:
        _log.info("open http://%s:%d/ in a browser; Ctrl+C ends it", HOST, server.server_port)
        server.serve_forever()
