"""Saved SAEs: the one door to an SAE on disk, in a checkpoint or on the Hub.

loading.py        `load`, `list_published`: finding and fetching
saved_sae.py      `SavedSAE`, and the one reader of the folder of an SAE
files.py          the files of that folder, read with every check
description.py    what its cfg.json says, as `list_published` tells it
stock_form.py     a training SAE as the stock SAE that it is saved as, in memory
training_form.py  the way back, in memory
fine_tuning.py    `to_training_sae`: the way back from wherever the SAE is
downloading.py    files through huggingface_hub's cache
hub_errors.py     what lies behind an error of huggingface_hub
"""
