"""What the tests of training share: a place where runs are started, killed and started again."""

import pytest

from tests.processes import Trainer


@pytest.fixture(scope="session")
def trainer():
    """One for all of them: it takes seconds to import what a run needs."""
    trainer = Trainer()
    yield trainer
    trainer.close()
