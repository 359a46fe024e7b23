"""What all tests share."""

import jax
import pytest


@pytest.fixture
def float64():
    """Switches JAX to double precision for one test."""
    with jax.enable_x64(True):
        yield
