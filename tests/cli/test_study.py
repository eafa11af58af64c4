"""`lora-lightning study`: what it prints, its JSON, its help and its exit statuses."""

import json
import re
from pathlib import Path

import pytest

from lora_lightning.cli.main import main
from lora_lightning.cli.study_audit import EPILOG
from lora_lightning.studies import audit_results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The table in the help's example."""
    path = tmp_path / "results.csv"
    lines = re.search(r"<< END\n(.*?)  END", EPILOG, re.DOTALL)
    assert lines
    path.write_text(lines[1].replace("  ", ""))
    return path


def test_the_example_in_the_help_works(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["study", "audit", "--help"])
    assert EPILOG in capsys.readouterr().out
    assert 'study audit results.csv --reference "r = 64"' in EPILOG
    assert main(["study", "audit", str(results), "--reference", "r = 64"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    answer = audit_results(results, "r = 64").analysis.recommendation.answer
    assert answer in printed.out
    assert "r = 8 is at least as good as r = 64 minus 0.5 points" in answer
    assert re.search(r"r = 8 +│ +3 │ +94.97 │ +0.03 │ -0.25 to 0.32 │ not worse │ maybe noise", printed.out)


def test_a_report_does_not_replace_the_table_that_it_is_about(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, folder = results.read_text(), results.parent
    (folder / "report.html").write_text("default-src 'none'; style-src 'unsafe-inline'")  # of a former report
    assert main(["study", "audit", str(results), "--reference=r = 64", f"--output={folder}"]) == 2
    assert f"the report would replace {results}, which it is about; choose another folder" in capsys.readouterr().err
    assert results.read_text() == before
    assert len([*folder.iterdir()]) == 2


def test_json_has_all_numbers_and_nothing_else_is_on_standard_output(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write_text(results.read_text() + "r = 8,3,nan,294912\n")
    assert main(["study", "audit", str(results), "--reference=r = 64", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    comparison = found["analysis"]["comparisons"][0]
    assert comparison["verdict"] == "not enough evidence"  # the three runs that are left may be the good ones
    assert comparison["variance_shares"] == {"seeds": 1.0, "examples": 0.0, "rest": 0.0}
    assert found["analysis"]["recommendation"]["name"] == "r = 64"
    assert found["configurations"][1]["failed_runs"] == 1
    assert found["configurations"][1]["values"] == {"0": 0.95, "1": 0.948, "2": 0.951}
    assert "1 of 7 runs have no finite accuracy" in found["notes"][0]
    assert printed.err.startswith("lora-lightning: warning: 1 of 7 runs have no finite accuracy")


def test_output_is_a_folder_with_the_report(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "report"
    assert main(["study", "audit", str(results), "--reference=r = 64", "--output", str(folder)]) == 0
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"report.html", "analysis.json", "results.csv", "figures"}
    words = ["study", "audit", str(folder / "results.csv"), "--reference=r = 64", "--json", f"--output={folder.parent}"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["analysis"]["recommendation"]["name"] == "r = 8"
    assert main([*words[:-1], f"--output={results}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "audit", "nothing.csv", "--reference=a"], "nothing.csv cannot be read"),
        (["study", "audit", "RESULTS", "--reference=a"], "no configuration 'a'; the configurations are 'r = 64'"),
        (["study", "audit", "RESULTS", "--reference=r = 64", "--margin=wide"], "invalid float value: 'wide'"),
        (["study", "audit", "RESULTS", "--refer=r = 64"], "required: --reference"),
        (["study", "audit", "RESULTS", "--reference=r = 64", "--nothing"], "unrecognized arguments: --nothing"),
        (["study", "adit"], "there is no subcommand adit; did you mean 'audit'? see lora-lightning study --help"),
        (["stduy", "run"], "there is no command stduy; did you mean 'study'? see lora-lightning --help"),
        (["study", "audit", "FOLDER", "--reference=a"], "is a folder; give a file that ends in .csv, .tsv"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_with_2(
    words: list[str], message: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"RESULTS": str(results), "FOLDER": str(results.parent)}
    assert main([given.get(word, word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lora-lightning: error: ")
    assert message in said
    assert len(said.splitlines()) == 1


def test_study_alone_shows_its_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["study"])
    assert "audit" in capsys.readouterr().out


def test_names_in_a_table_cannot_control_the_terminal(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write_text(results.read_text().replace("r = 8", "\x1b[31m[red]r"))
    assert main(["study", "audit", str(results), "--reference=r = 64"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"\x1b[31m[red]r" in printed
