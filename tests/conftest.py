"""Shapes and types in the signatures of cctlib are checked while tests run, and only then."""

import jaxtyping
import pytest
import torch
from xdist.scheduler import LoadFileScheduling

jaxtyping.install_import_hook("cctlib", "typechecker.checked")


def pytest_runtest_setup(item):
    """Tests marked `cuda` say that they were left out where there is no GPU."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")


class BookTogether(LoadFileScheduling):
    """`--dist loadfile`, with all tests of the book as one file: they share one book, which takes minutes to build."""

    def _split_scope(self, nodeid):
        return "tests/book" if nodeid.startswith("tests/book/") else super()._split_scope(nodeid)


def pytest_collection_modifyitems(items):
    """The tests of the book begin, for they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/book/"))


@pytest.hookimpl(optionalhook=True)  # a run without xdist has no such hook
def pytest_xdist_make_scheduler(config, log):
    return BookTogether(config, log)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory):
    """See `tiny_study.py`; made once for all tests of a process, which leave its folders as they are."""
    from tiny_study import untrained  # late: the import hook above has to come first

    return untrained("demo", tmp_path_factory.mktemp("demo") / "model")
