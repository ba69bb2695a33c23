"""Reports to keep: CSV, JSON, one HTML page, PDF. None holds a path, an identifier of a DICOM header, or a link."""

from __future__ import annotations

import base64
import json
from html import escape
from io import BytesIO

import matplotlib.image
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from adlib.classify.widget.jobs import Result
from adlib.classify.widget.result_tables import batch_table, summary_table
from adlib.classify.widget.views import (
    answer_html,
    checks_html,
    page,
    picture_html,
    remarks_html,
    table_html,
    volumes_html,
)

NAMES = {"csv": "text/csv", "json": "application/json", "html": "text/html", "pdf": "application/pdf"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet run a cell


def as_csv(results: list[Result]) -> bytes:
    """One row per scan; a name that a spreadsheet would run as a formula begins with an apostrophe."""
    table = batch_table(result.record for result in results)
    table["scan"] = [f"'{name}" if name.startswith(FORMULA) else name for name in table["scan"]]
    return table.to_csv(index=False, lineterminator="\n").encode()


def as_json(results: list[Result]) -> bytes:
    """The whole record of each scan."""
    return (json.dumps([result.record for result in results], indent=2, allow_nan=False) + "\n").encode()


def as_html(results: list[Result]) -> bytes:
    """One page with everything, pictures inside."""
    body = [_section(result) for result in results]
    tables = [table_html(summary_table(result.record for result in results), "All scans")]
    head = "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>adlib: classified scans</title></head>"
    return f"{head}<body>{page('<h1>Classified scans</h1>', *body, *tables)}</body></html>".encode()


def _section(result: Result) -> str:
    record = result.record
    pictures = [picture_html(png, f"{record['name']}: {name}") for name, png in result.pictures.items()]
    return "".join([answer_html(record), checks_html(record), volumes_html(record), *pictures, remarks_html(record)])


def as_pdf(results: list[Result]) -> bytes:
    """A page for each picture of each scan, under its answer."""
    content = BytesIO()
    with PdfPages(content, metadata={"Title": "Classified scans", "Creator": "adlib"}) as pages:
        for result in results:
            for png in result.pictures.values():
                pages.savefig(_sheet(result, png))
    return content.getvalue()


def _sheet(result: Result, png: bytes) -> Figure:
    figure = Figure(figsize=(8.27, 11.69), layout="none")
    record = result.record
    figure.text(0.06, 0.965, f"{record['name']}: {record['statement']}", fontsize=11, fontweight="bold", wrap=True)
    figure.text(0.06, 0.945, record["warning"], fontsize=7)
    figure.text(0.06, 0.93, record["origin"], fontsize=7)
    axis = figure.add_axes((0.05, 0.05, 0.9, 0.86))
    axis.set_axis_off()
    axis.imshow(matplotlib.image.imread(BytesIO(png)))
    return figure


def links_html(results: list[Result]) -> str:
    """A link for each kind of report, its content inside the link."""
    makers = {"csv": as_csv, "json": as_json, "html": as_html, "pdf": as_pdf}
    links = []
    for kind, make in makers.items():
        content = base64.b64encode(make(results)).decode()
        name = escape(f"classified_scans.{kind}", quote=True)
        links.append(f"<a download='{name}' href='data:{NAMES[kind]};base64,{content}'>{kind.upper()}</a>")
    return page(f"<p>Reports of {len(results)} scan{'s' * (len(results) > 1)}: {''.join(links)}</p>")
