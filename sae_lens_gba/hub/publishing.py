"""Publishing GBA SAEs on the Hugging Face Hub."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.constants import REPOCARD_NAME
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_gba.atomic_write import files_written_whole, storage_errors
from sae_lens_gba.errors import GBAError, InvalidPublicationError, StorageError
from sae_lens_gba.hub.card_update import split_front_matter, update_card
from sae_lens_gba.hub.model_card import CardEntry, card_body, front_matter, release_entry
from sae_lens_gba.hub.preparation import Sources, prepare
from sae_lens_gba.hub.remote import Operation, Remote, RemoteState
from sae_lens_gba.hub.validation import check_license, check_target
from sae_lens_gba.saved.description import group_rows
from sae_lens_gba.saved.downloading import check_endpoint, check_repo_id, check_token
from sae_lens_gba.saved.files import ALL_FILES, PLOT_FILENAME, read_cfg
from sae_lens_gba.saved.saved_sae import own_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """What `publish` did, or with ``dry_run`` would do.

    Attributes:
        repo_id: the repo.
        sae_ids: ids of the SAEs, in the order given.
        files: size in bytes of each file, by its path in the repo.
        card: the model card.
        release_entry: YAML block for SAELens' pretrained_saes.yaml; None for several models.
        folder: where the files were kept; None where they were not.
        commit_oid: the commit that holds the files; None for a dry run.
        commit_url: its page.
        pull_request_url: with create_pr, the page of the pull request.
        changed: False when the repo held identical files, and so no commit was made.
    """

    repo_id: str
    sae_ids: tuple[str, ...]
    files: dict[str, int]
    card: str
    release_entry: str | None
    folder: Path | None = None
    commit_oid: str | None = None
    commit_url: str | None = None
    pull_request_url: str | None = None
    changed: bool = False

    def summary(self) -> str:
        """A few lines for the terminal."""
        width = max(len(name) for name in self.files)
        lines = [f"  {name:<{width}}  {size:>12,} bytes" for name, size in self.files.items()]
        if self.commit_oid is None:
            head = f"would be published to {self.repo_id} (dry run, nothing was sent):"
        elif self.changed:
            head = f"published to {self.pull_request_url or self.commit_url}:"
        else:
            head = f"{self.repo_id} holds exactly these files already, no commit was made:"
        return "\n".join([head, *lines])


def publish(
    saes: Sources,
    repo_id: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    neuronpedia_ids: Mapping[str, str] | None = None,
    license: str | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    dry_run: bool = False,
    folder: str | Path | None = None,
    show_progress: bool = True,
) -> Publication:
    """Publish one or many GBA SAEs in one commit.

    Each is converted to its stock form first, so that ``SAE.from_pretrained(repo_id, sae_id)``
    of SAELens loads it without this package. Everything is checked before the first network
    call. All files and the model card go in one commit: an upload that fails leaves the
    files of the repo as they were. Identical files make no commit.

    Args:
        saes: a GBATrainingSAE, the output folder of a run or a training checkpoint; a list of
            them; or a dict from id to them. The default id is
            ``{hook_name}/l0_{L0 asked for}/width_{d_sae}``.
        repo_id: ``user-or-organisation/name``; created where it does not exist.
        metadata: fields to set in every SAE's metadata, such as ``model_name``, ``hook_name``,
            ``dataset_path``.
        evaluations: by id, figures for the card, of the form of the ``evaluation.json`` that
            ``sae-lens-gba report`` leaves beside an SAE and that is taken if none are given (see
            `sae_lens_gba.saved.evaluation`); or any numbers by name, of which ``l0``,
            ``explained_variance``, ``ce_recovered``, ``dead`` and SAELens' names are understood.
        neuronpedia_ids: by id, ``model/layer-source``.
        license: of the SAEs, such as "mit"; None leaves it open, which the card says.
        base_model: Hub name of the model where SAELens' metadata has another one.
        private: visibility of a repo that is created; None is the owner's default.
        revision: branch to commit to, created where it does not exist; None is main.
        create_pr: open a pull request against main instead.
        commit_message: first line of the commit message.
        token: None uses the one of ``hf auth login``.
        endpoint: of the Hub; None uses HF_ENDPOINT, or the public one.
        dry_run: stop before the first network call; the files are in ``Publication.folder``.
        folder: keep the files here; must be empty or not exist, and is so again after an error.
        show_progress: progress bar while SAEs are converted.

    Raises:
        InvalidPublicationError: something must not be published as it is, or is damaged.
        MissingFileError, NotAGBASAEError, NewerFormatError: a source can't be read.
        AccessError: the token is refused or may not write there.
        StorageError: there is no room for the files on this machine, or no permission.
        PublishError: the upload failed otherwise; the message says what to do.
    """
    check_repo_id(repo_id)
    check_endpoint(endpoint)
    check_token(token)
    check_target(revision, create_pr)
    check_license(license)
    kept = None if folder is None else Path(folder).expanduser()
    with _kept_in(kept) if kept is not None else _temporary(dry_run) as work:
        entries = prepare(
            saes, work, metadata or {}, evaluations or {}, neuronpedia_ids or {}, show_progress
        )
        contents = _Contents(repo_id, entries, work, license, base_model)
        contents.write_card(RemoteState())  # what is wrong with it is known before a repo is made
        if dry_run:
            return replace(contents.publication(), folder=kept or work)
        if license is None:
            logger.warning("%s: no license is stated; pass license='mit' or another.", repo_id)
        api = HfApi(endpoint=endpoint, token=token, library_name="sae-lens-gba")
        remote = Remote(api, repo_id, revision, create_pr, private)
        what = entries[0].sae_id if len(entries) == 1 else f"{len(entries)} SAEs"
        info = remote.commit(contents.operations, commit_message or f"Publish {what}")
        return replace(
            contents.publication(),
            folder=kept,
            commit_oid=info.oid,
            commit_url=info.commit_url,
            pull_request_url=info.pr_url,
            changed=info.oid != remote.first_sha,
        )


@contextmanager
def _kept_in(folder: Path) -> Iterator[Path]:
    """Where files are laid out as in the repo; they are in ``folder`` once the block ends well."""
    existed = folder.exists()
    if existed and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise InvalidPublicationError(
            f"folder={str(folder)!r} {what}: name a new one, or remove what is there."
        )
    try:
        with files_written_whole(folder) as work:
            yield work
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _temporary(stays: bool) -> Iterator[Path]:
    """The same in a folder of the system's; ``stays`` if the block ends well, else it goes."""
    try:
        place = Path(tempfile.gettempdir()) / "sae-lens-gba"
    except FileNotFoundError as error:  # none of the places that it tries takes a file
        raise StorageError(
            "there is no folder for temporary files: free some space, or name one (TMPDIR)."
        ) from error
    with storage_errors(place, "TMPDIR"):
        work = Path(tempfile.mkdtemp(prefix=f"{place.name}-"))
        try:
            yield work
        except BaseException:
            stays = False
            raise
        finally:
            if not stays:
                shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Contents:
    """What goes into the commit: SAEs in a folder laid out as the repo, and their card."""

    repo_id: str
    entries: Sequence[CardEntry]
    folder: Path
    license: str | None
    base_model: str | None

    def operations(self, state: RemoteState) -> list[Operation]:
        """What makes the remote hold these files, with a card for all of its SAEs."""
        self.write_card(state)
        for entry in self.entries:
            there = state.folder / entry.sae_id / SAE_CFG_FILENAME
            own = self.folder / entry.sae_id / SAE_CFG_FILENAME
            if there.is_file() and there.read_bytes() != own.read_bytes():
                logger.warning(
                    "publishing: %s is in %s already, and its files are replaced (they stay in the "
                    "history); if this is another SAE, give it an id of its own to keep both.",
                    entry.sae_id,
                    self.repo_id,
                )
        files = self._files()
        # a file that an earlier version of the SAE had would be taken for this one's
        possible = {f"{entry.sae_id}/{name}" for entry in self.entries for name in ALL_FILES}
        return [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in sorted(possible & state.files - set(files))),
        ]

    def write_card(self, state: RemoteState) -> None:
        """README.md for these SAEs and those that the remote has already."""
        entries = {**self._others(state), **{entry.sae_id: entry for entry in self.entries}}
        listed = [entry for _, entry in sorted(entries.items())]
        existing = None
        if REPOCARD_NAME in state.files:
            existing = (state.folder / REPOCARD_NAME).read_text(encoding="utf-8-sig")
        license = self.license or split_front_matter(existing or "")[0].get("license")
        card = update_card(
            existing,
            front_matter(self.repo_id, listed, license, self.base_model),
            card_body(self.repo_id, listed, license),
            [name for name in ("license", "base_model") if getattr(self, name)],
        )
        (self.folder / REPOCARD_NAME).write_bytes(card.encode())

    def publication(self) -> Publication:
        return Publication(
            self.repo_id,
            tuple(entry.sae_id for entry in self.entries),
            {name: path.stat().st_size for name, path in self._files().items()},
            (self.folder / REPOCARD_NAME).read_bytes().decode(),
            release_entry(self.repo_id, self.entries),
        )

    def _files(self) -> dict[str, Path]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in paths}

    def _others(self, state: RemoteState) -> dict[str, CardEntry]:
        others = {}
        cfgs = [name for name in state.files if name.endswith(f"/{SAE_CFG_FILENAME}")]
        for sae_id in sorted(name.removesuffix(f"/{SAE_CFG_FILENAME}") for name in cfgs):
            plot = f"{sae_id}/{PLOT_FILENAME}"
            try:
                with own_errors(sae_id):
                    cfg = read_cfg(state.folder / sae_id)
                    if group_rows(cfg.get("metadata") or {}) is not None:
                        found = plot if plot in state.files else None
                        others[sae_id] = CardEntry.from_cfg(sae_id, cfg, found)
            except GBAError as error:
                logger.warning("publishing: the card leaves out %s (%s)", sae_id, error)
        return others
