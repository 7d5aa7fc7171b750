"""README is true: its tree, its table of settings, its commands."""

import re
import subprocess
from pathlib import Path

from toxicity.labelling_config import read_config
from toxicity.labels import LABELS
from toxicity.settings import settings_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_settings_is_the_one_that_the_code_prints() -> None:
    found = README.split("<!-- settings -->")[1].split("<!-- /settings -->")[0].strip()
    assert found == settings_table(), "paste the output of `python -m toxicity settings` into README.md"


def test_the_tree_names_every_module_and_nothing_else() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    named: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        entry = line.split()[0] if line.strip() else ""
        if entry.endswith("/") and not line.startswith(" "):
            folder = entry
        elif entry:
            named.add(folder + entry)
    there = {
        f"{package}/{file.name}"
        for package in ("toxicity", "backend", "worker")
        for file in (ROOT / package).iterdir()
        if file.is_file() and file.name != "__init__.py"
    }
    assert named == there


def test_the_labelling_config_of_the_readme_offers_all_six_labels() -> None:
    match = re.search(r"<View>.*?</View>", README, re.DOTALL)
    assert match is not None
    assert tuple(read_config(match[0]).choices) == LABELS


def test_make_alone_lists_every_target_that_the_readme_names() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("up", "test", "test-fast", "lint", "lock", "starter"):
        assert re.search(rf"^  make {target} ", listed, re.MULTILINE), listed


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
