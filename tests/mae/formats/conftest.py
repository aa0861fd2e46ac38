"""The recorded models of other projects, as a fixture."""

import pytest

from tests import foreign


@pytest.fixture
def golden():
    """name → `Golden`."""
    return foreign.golden
