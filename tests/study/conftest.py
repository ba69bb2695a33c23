"""A project of tiny notebooks: new, after one run, and a copy that has run."""

import shutil

import pytest
from throwaway import make_project, run


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    """A project that has run once, and the process."""
    project = make_project(tmp_path_factory.mktemp("done") / "project")
    return project, run(project)


@pytest.fixture(scope="session")
def done(first_run):
    """The project that has run; tests leave its results as they are."""
    return first_run[0]


@pytest.fixture
def finished(done, tmp_path):
    """A copy of the project that has run."""
    return shutil.copytree(done, tmp_path / "finished")
