"""The language model that a run's configuration names."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sae_lens
from sae_lens.load_model import load_model


def model_of(cfg: Any, hook_names: Iterable[str]) -> Any:
    """Load it.

    Args:
        cfg: of one of SAELens' runners.
        hook_names: where activations are taken: a model that is not TransformerLens' has no others.

    Raises:
        ValueError: nobody knows it.
    """
    try:
        return load_model(
            cfg.model_class_name,
            cfg.model_name,
            device=cfg.llm_device,
            model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
            hook_names=list(dict.fromkeys(hook_names)),
        )
    except ValueError as error:
        if "Valid official model names" not in str(error):  # in which it lists them all
            raise
        raise ValueError(
            f"model_name={cfg.model_name!r} is no model that TransformerLens knows. Any other, "
            "from Hugging Face or a folder: --model_class_name AutoModelForCausalLM, with a "
            "hook_name such as model.layers.8."
        ) from None


@contextmanager
def no_warning_of_a_model() -> Iterator[None]:
    """SAELens warns of a model that its configuration does not name; this one it does."""

    def is_other(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "passed in a model" not in message and "override_model overrides" not in message

    sae_lens.logger.addFilter(is_other)
    try:
        yield
    finally:
        sae_lens.logger.removeFilter(is_other)
