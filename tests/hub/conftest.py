"""Its fixtures are those of tests/saved as well."""

from tests.hub_fixtures import *  # noqa: F403
