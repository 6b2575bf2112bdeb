"""A real language model and real text that come from PyPI, and a run that uses them."""
