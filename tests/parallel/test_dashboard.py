"""The dashboard of the workers: told once, and there."""

import urllib.request

import pytest
from test_cluster import Elsewhere
from test_compute import TWO, double

from adlib.parallel.cluster import close_clusters
from adlib.parallel.mapping import map_scans
from adlib.study.exec_params import Pool
from adlib.study.execution import LastLine


def test_the_address_of_the_dashboard_is_told_once_and_answers(capsys):
    pytest.importorskip("bokeh")
    close_clusters()
    told = []
    stream = LastLine(told.append)
    map_scans(double, range(4), pool=TWO, label="doubling")
    stream.write(capsys.readouterr().err)
    (line,) = told
    assert line.startswith("dashboard of the workers: http://127.0.0.1:")
    with urllib.request.urlopen(line.split()[-1]) as page:
        assert b"Dask" in page.read()
    map_scans(double, range(4), pool=TWO, label="doubling")
    assert "dashboard" not in capsys.readouterr().err


def test_none_is_told_where_there_is_none(tmp_path, capsys):
    place = Elsewhere(tmp_path)
    try:
        place.work()
        map_scans(double, range(4), pool=Pool(scheduler=place.address, folder=tmp_path), label="doubling")
        assert "dashboard" not in capsys.readouterr().err
    finally:
        place.end()
