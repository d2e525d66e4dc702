"""The documentation as a site: it builds without a warning, and what is made from the code is all there."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from refgeo.attacks.state import COLUMNS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return out


@pytest.mark.slow
def test_every_setting_and_command_has_its_place(site: Path) -> None:
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    for path in ("train.r2d2.weight_away", "stress.attack.objective.target", "judge.max_unscored", "geometry.max_kl"):
        assert f"<code>{path}</code>" in settings
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in ("refgeo run", "refgeo measure", "refgeo scan", "refgeo pocket build"):
        assert f"Usage: {name}" in commands
    assert "refgeo[figures]" in commands


@pytest.mark.slow
def test_the_site_asks_the_network_for_nothing(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for asked in ('src="http', "fonts.googleapis", "unpkg.com", "cdn."):
            assert asked not in text, f"{page.name} asks for {asked}"


@pytest.mark.slow
def test_every_link_inside_leads_somewhere(site: Path) -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    names = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    followed = 0
    for page, text in pages.items():
        for link in map(html.unescape, re.findall(r'\b(?:href|src)="([^"]+)"', text)):
            path, _, name = unquote(link).partition("#")
            if "://" in link or link.startswith(("data:", "mailto:")) or page.name == "404.html":
                continue
            target = (page.parent / path).resolve() if path else page.resolve()
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(site.resolve()), f"{page.name} links out of the site: {link}"
            assert target.is_file(), f"{page.name}: {link}"
            assert not name or target.suffix != ".html" or name in names[site / target.relative_to(site.resolve())], f"{page.name}: {link}"
            followed += 1
    assert followed > 500


@pytest.mark.slow
def test_the_worked_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 2
    space: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "python.md", "exec"), space)
    assert int(space["best"]["layer"]) >= 0
    assert "s_total" in capsys.readouterr().out
    assert len(space["before"]) == len(space["after"]) == 8


def test_the_page_of_attacks_names_the_columns_that_records_have() -> None:
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    assert f"found.records       # {', '.join(COLUMNS)}\n" in page
