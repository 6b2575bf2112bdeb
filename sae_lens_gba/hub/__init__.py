"""Publishing GBA SAEs on the Hugging Face Hub.

publishing.py     `publish`: prepare, check, one commit
preparation.py    what was passed -> a folder laid out as the repo will be
validation.py     what must hold before the first network call
remote.py         the commit: retries, conflicts
remote_errors.py  what its errors mean
model_card.py     the card, with its text in model_card_template.md
card_update.py    the card beside what a person wrote
command_line.py   `sae-lens-gba publish`

This module imports nothing: the names above are imported from their modules.
"""
