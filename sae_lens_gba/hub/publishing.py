"""Publishing GBA SAEs on the Hugging Face Hub."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from sae_lens_gba.hub.card_update import split_front_matter, update_card
from sae_lens_gba.hub.model_card import CardEntry, card_body, front_matter
from sae_lens_gba.hub.preparation import Sources, StagedSAEs, prepare, working_folder
from sae_lens_gba.hub.release_entry import release_entry
from sae_lens_gba.hub.remote import Operation, RemoteState, Target, commit_all
from sae_lens_gba.hub.validation import check_target
from sae_lens_gba.saved.downloading import check_repo_id
from sae_lens_gba.saved.files import ALL_FILES, PLOT_FILENAME

CARD_FILENAME = "README.md"

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


@dataclass(frozen=True)
class CardSettings:
    """What the card needs beside the SAEs' own configurations."""

    license: str | None = None
    base_model: str | None = None

    @property
    def explicit(self) -> tuple[str, ...]:
        return tuple(name for name in ("license", "base_model") if getattr(self, name))


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
        evaluations: by id, figures for the card: ``l0``, ``explained_variance``,
            ``ce_recovered``, ``dead`` and any others; SAELens' names are understood.
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
        PublishError: the upload failed otherwise; the message says what to do.
    """
    check_repo_id(repo_id)
    check_target(revision, create_pr)
    card_settings = CardSettings(license, base_model)
    with working_folder(folder, keep=dry_run) as work:
        staged = prepare(
            saes,
            work,
            metadata or {},
            evaluations or {},
            neuronpedia_ids or {},
            show_progress,
        )
        card = _write_card(staged, repo_id, card_settings)
        publication = _describe(staged, repo_id, card)
        if dry_run or folder is not None:
            publication = replace(publication, folder=work)
        if dry_run:
            return publication
        if license is None:
            logger.warning("%s: no license is stated; pass license='mit' or another.", repo_id)
        target = Target(repo_id, revision, create_pr, private)
        return _upload(
            HfApi(endpoint=endpoint, token=token, library_name="sae-lens-gba"),
            target,
            staged,
            publication,
            card_settings,
            commit_message or _default_message(publication.sae_ids),
        )


def _describe(staged: StagedSAEs, repo_id: str, card: str) -> Publication:
    return Publication(
        repo_id,
        tuple(entry.sae_id for entry in staged.entries),
        _sizes(staged, card),
        card,
        _release_entry(repo_id, staged.entries),
    )


def _write_card(
    staged: StagedSAEs, repo_id: str, settings: CardSettings, state: RemoteState | None = None
) -> str:
    """README.md for the staged SAEs and those that the repo has already."""
    state = state or RemoteState("")
    ours = {entry.sae_id: entry for entry in staged.entries}
    others = {
        sae_id: CardEntry.from_cfg(sae_id, cfg, _remote_plot(sae_id, state))
        for sae_id, cfg in state.configs.items()
        if sae_id not in ours and "groups" in ((cfg.get("metadata") or {}).get("gba") or {})
    }
    entries = [entry for _, entry in sorted({**others, **ours}.items())]
    known = split_front_matter(state.card)[0] if state.card else {}
    license = settings.license or known.get("license")
    card = update_card(
        state.card,
        front_matter(repo_id, entries, license, settings.base_model),
        card_body(repo_id, entries, license),
        settings.explicit,
    )
    (staged.folder / CARD_FILENAME).write_text(card, encoding="utf-8")
    return card


def _remote_plot(sae_id: str, state: RemoteState) -> str | None:
    path = f"{sae_id}/{PLOT_FILENAME}"
    return path if path in state.files else None


def _release_entry(repo_id: str, entries: Sequence[CardEntry]) -> str | None:
    if len({entry.model_name for entry in entries}) > 1:
        return None
    return release_entry(repo_id, entries)


def _sizes(staged: StagedSAEs, card: str) -> dict[str, int]:
    sizes = {name: path.stat().st_size for name, path in staged.paths().items()}
    return {CARD_FILENAME: len(card.encode()), **sizes}


def _default_message(sae_ids: Sequence[str]) -> str:
    return f"Publish {sae_ids[0]}" if len(sae_ids) == 1 else f"Publish {len(sae_ids)} SAEs"


def _upload(
    api: HfApi,
    target: Target,
    staged: StagedSAEs,
    publication: Publication,
    settings: CardSettings,
    message: str,
) -> Publication:
    cards: list[str] = []

    def operations(state: RemoteState) -> list[Operation]:
        card = _write_card(staged, target.repo_id, settings, state)
        cards.append(card)
        files = staged.paths()
        # a file that an earlier version of the SAE had would be taken for this one's
        stale = [
            f"{entry.sae_id}/{name}"
            for entry in staged.entries
            for name in ALL_FILES
            if f"{entry.sae_id}/{name}" in state.files and f"{entry.sae_id}/{name}" not in files
        ]
        return [
            CommitOperationAdd(CARD_FILENAME, card.encode()),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ]

    outcome = commit_all(api, target, operations, message)
    card = cards[-1]
    return replace(
        publication,
        files=_sizes(staged, card),
        card=card,
        commit_oid=outcome.info.oid,
        commit_url=outcome.info.commit_url,
        pull_request_url=outcome.info.pr_url,
        changed=outcome.changed,
    )
