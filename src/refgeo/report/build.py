"""From a run folder to its report: tables, ledger, page."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from refgeo.config.schema import Study
from refgeo.report.claims import claims_table, ledger
from refgeo.report.claims_added import load_claims
from refgeo.report.evidence import Evidence
from refgeo.report.page import render
from refgeo.report.paper import paper_tables
from refgeo.report.tables import collect, read_transcripts, write_csv
from refgeo.study.files import csv_text
from refgeo.study.layout import Measure, anchors

INDEX = "index.html"


def build_report(run: Path, study: Study, out: Path) -> Path:
    """Write ``index.html`` and ``tables/*.csv`` under ``out`` from what lies in ``run``; returns the path of the page.

    Works on unfinished runs too: what is absent is shown as absent with the reason. Raises ``StoreError`` for unreadable
    tables and ``ConfigError`` for rules (``report.claims``) that cannot be used.
    """
    found = anchors(run, study)
    folders = {(anchor.arm, anchor.seed, anchor.step): anchor for anchor in found}

    @cache
    def read(path: Path) -> pd.DataFrame:
        return read_transcripts(path)

    def transcripts(arm: str, seed: int, step: int, measure: Measure) -> pd.DataFrame:
        anchor = folders.get((arm, seed, step))
        return pd.DataFrame() if anchor is None else read(anchor.part(measure))

    tables = collect(found)
    evidence = Evidence(tables, transcripts)
    added = () if study.report.claims is None else load_claims(study.report.claims)
    answers = ledger(evidence, added)
    paper_answers = ledger(Evidence(paper_tables()), added)
    write_csv(tables, out / "tables")
    (out / "tables" / "claims.csv").write_text(csv_text(claims_table(answers)), encoding="utf-8")
    page = render(run, study, found, tables, evidence, answers, paper_answers, transcripts)
    index = out / INDEX
    index.write_text(page, encoding="utf-8")
    return index
