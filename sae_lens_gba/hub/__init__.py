"""Publishing GBA SAEs on the Hugging Face Hub, and loading them.

publishing.py    `publish`: prepare, check, one commit
preparation.py   what was passed -> a folder laid out as the repo will be
staging.py       one SAE -> its stock form
validation.py    what must hold before the first network call
remote.py        the commit: retries, conflicts, nothing left half-made
model_card.py    the card, with its text in model_card_template.md
card_update.py   the card beside what a person wrote
downloading.py   files through huggingface_hub's cache
command_line.py  `sae-lens-gba publish`
loading.py       `load`, `list_published`
fine_tuning.py   `to_training_sae`
sae_folder.py    the files of a published SAE, read with every check

This module imports nothing: the names above are imported from their modules.
"""
