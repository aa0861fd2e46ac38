"""The recorded models of other projects, as a fixture."""

import pytest

from tests import foreign


@pytest.fixture
def golden():
    """name → `Golden`."""
    return foreign.golden


@pytest.fixture
def cropmae(golden):
    """Weights by name, images, and the features that belong to them."""
    recorded = golden("cropmae")
    return recorded.state, recorded.video("images_48x80"), recorded["features_48x80"]
