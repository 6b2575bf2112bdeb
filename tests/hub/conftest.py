"""Its fixtures are those of tests/saved as well."""

from tests.hub_fixtures import (  # noqa: F401
    _no_plots_unless_asked,
    _own_cache_and_no_token,
    hub,
    jumprelu_sae,
    make_sae,
    mid_run_checkpoint,
    published,
    relu_sae,
    sae_folder,
    waits,
    with_plots,
)
