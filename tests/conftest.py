"""Hypothesis profiles, one BLAS thread for every test, and the list of shared fixtures."""

import os

# Sums depend on how BLAS splits them. Read when a BLAS is loaded, so before any test imports one.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from hypothesis import settings

# Fixtures that tests of more than one folder use live in modules of their own, named here.
pytest_plugins: list[str] = ["tests.model_fixtures"]

# No deadlines: a busy neighbour on the machine is not a bug.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.register_profile("deep", deadline=None, max_examples=2_000, stateful_step_count=200)


def _profile() -> str:
    return os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")


settings.load_profile(_profile())
