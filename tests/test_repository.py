"""What contributors read is true: files and rooms that are named exist, versions agree, data sets are in NOTICE."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import lora_lightning
from lora_lightning.configuration.schema_file import SCHEMA_FILE
from lora_lightning.training.config_schema import schema_text
from tests.test_architecture import LEVEL, PACKAGE

ROOT = PACKAGE.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")])
FOLDERS = ("benchmarks", "configs", "docs", "examples", "lora_lightning", "tests")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@page
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


@page
def test_files_that_are_named_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[^`\s]*)`", text):
        if not re.search(r"[<*{]", name):
            assert (ROOT / name).exists(), name


def test_the_documented_order_of_rooms_is_the_one_that_is_enforced() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    documented = {room: int(level) for level, room in rows}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms | {"errors"} <= documented.keys()
    places = [LEVEL[room] for room in documented]
    order = sorted(set(places))
    assert {room: order.index(LEVEL[room]) + 1 for room in documented} == documented


def test_the_changelog_has_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == lora_lightning.__version__


def test_the_schema_of_configs_describes_todays_options() -> None:
    message = "run `python -m lora_lightning.training.config_schema`, and commit fit.schema.json"
    assert schema_text() == SCHEMA_FILE.read_text(), message


def test_every_supported_python_is_tested() -> None:
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python-version"] == supported
    assert PROJECT["requires-python"] == f">={supported[0]}"


def test_actions_are_pinned_to_a_major_version() -> None:
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert actions
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)


def test_notice_names_every_data_set_and_package_of_weights() -> None:
    code = "\n".join(path.read_text() for path in (*PACKAGE.rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")))
    data_sets = re.findall(r"(?:HUB_DATASET = \"|\bdataset_name: )([\w.-]+/[\w.-]+)", code)
    packages = re.findall(r"package://(gt_\w+|llm_\w+)", code)
    notice = (ROOT / "NOTICE").read_text()
    assert data_sets
    assert packages
    for name in {*data_sets, *(package.replace("_", "-") for package in packages)}:
        assert f"`{name}`" in notice, name
