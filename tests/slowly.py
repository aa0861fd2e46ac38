"""Parameters of a test that only `make test-long` takes, beside those that `make test` takes."""

import pytest


def slowly(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
