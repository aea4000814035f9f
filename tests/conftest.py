"""Shapes and types in the signatures of cctlib are checked while tests run, and only then."""

import jaxtyping
import pytest

jaxtyping.install_import_hook("cctlib", "typechecker.checked")


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory):
    """See `tiny_study.py`; made once for all tests of a process, which leave its folders as they are."""
    from tiny_study import untrained  # late: the import hook above has to come first

    return untrained("demo", tmp_path_factory.mktemp("demo") / "model")
