"""The language model that a run's configuration names."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sae_lens
from sae_lens.load_model import load_model

from sae_lens_gba.errors import brief


@contextmanager
def model_for(cfg: Any, hook_names: Iterable[str], given: Any = None) -> Iterator[Any]:
    """A model that was given; else the one that is named, of which SAELens then need not warn.

    Args:
        cfg: of one of SAELens' runners, which is made in the block.
        hook_names: where activations are taken: a model that is not TransformerLens' has no others.
        given: in place of it.

    Raises:
        ValueError: nobody knows it.
    """
    if given is not None:
        yield given
        return
    model = _load(cfg, hook_names)
    sae_lens.logger.addFilter(_is_no_warning_of_a_model)
    try:
        yield model
    finally:
        sae_lens.logger.removeFilter(_is_no_warning_of_a_model)


def _load(cfg: Any, hook_names: Iterable[str]) -> Any:
    try:
        return load_model(
            cfg.model_class_name,
            cfg.model_name,
            device=cfg.llm_device,
            model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
            hook_names=list(dict.fromkeys(hook_names)),
        )
    except OSError as error:
        if error.errno is not None:  # the system's, of a full disk
            raise
        raise ValueError(
            f"model_name={cfg.model_name!r} can't be loaded ({brief(str(error))}): give the name "
            "of a model on the Hub, or a folder."
        ) from error
    except ValueError as error:
        if "not found as submodules" in str(error):
            raise ValueError(
                f"hook_name={cfg.hook_name!r} is no module of the model ({error}): its names are "
                "those of model.named_modules(), such as model.layers.8."
            ) from error
        if "Valid official model names" not in str(error):  # in which it lists them all
            raise
        raise ValueError(
            f"model_name={cfg.model_name!r} is no model that TransformerLens knows. Any other, "
            "from Hugging Face or a folder: --model_class_name AutoModelForCausalLM, with a "
            "hook_name such as model.layers.8."
        ) from None


def _is_no_warning_of_a_model(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "passed in a model" not in message and "override_model overrides" not in message
