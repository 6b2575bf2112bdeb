"""Its fixtures are those of tests/hub as well."""

from tests.hub_fixtures import *  # noqa: F403
