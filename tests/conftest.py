"""What all tests share."""

import jax
import pytest

collect_ignore_glob = ["benchmarks/*", "adequacy/*"]  # programs, not tests


@pytest.fixture
def float64():
    """Switches JAX to double precision for one test."""
    with jax.enable_x64(True):
        yield
