"""The YAML files of this package are found, described and copied, in a checkout and in an installed package."""

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_lightning.configuration import shipped_configs as shipped
from lora_lightning.configuration.shipped_configs import (
    check_config_paths,
    configs_folder,
    copy_config,
    find_config,
    shipped_configs,
)
from lora_lightning.diagnosis.diagnosis_file import read_diagnosis_file
from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.specification import Study
from lora_lightning.studies.study_file import read_study_file

ROOT = Path(__file__).parents[2]
READERS: dict[str, Callable[[Path], Study]] = {
    "studies": read_study_file,
    "diagnosis": lambda path: read_diagnosis_file(path).study,
}
STUDIES = [config for config in shipped_configs() if config.name.partition("/")[0] in READERS]


def test_every_yaml_is_listed_with_a_sentence() -> None:
    configs = shipped_configs()
    assert {config.path for config in configs} == set((ROOT / "configs").rglob("*.yaml"))
    assert configs[0].name == "quickstart"
    assert all(10 < len(config.summary) <= 200 for config in configs)
    assert find_config("clinc150/minilm_lora").summary == (
        "CLINC150 (150 intents in 10 domains, and out-of-scope queries) on all-MiniLM-L6-v2, weights from a package."
    )


@pytest.mark.parametrize("name", ["quickstart", "configs/quickstart.yaml", "./configs/quickstart.yaml"])
def test_a_config_has_several_spellings(name: str) -> None:
    assert find_config(name).path == ROOT / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(("name", "hint"), [("quickstrat", "did you mean 'quickstart'"), ("zzz", "configs` lists all")])
def test_an_unknown_config_is_refused(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        find_config(name)


def test_a_wheel_has_the_configs_where_an_installed_package_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "lora_lightning/configs"}
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "lora_lightning")
    installed = shutil.copytree(ROOT / "configs", tmp_path / wheel["force-include"]["configs"])
    assert configs_folder() == installed
    study = next(config for config in shipped_configs() if config.name == "studies/rank_quickstart")
    assert [path.resolve() for path in read_study_file(study.path).base] == [installed / "quickstart.yaml"]


def test_a_copy_says_how_to_run_it(tmp_path: Path) -> None:
    written = copy_config("clinc150/minilm_lora", tmp_path)
    assert written == [tmp_path / "minilm_lora.yaml"]
    text, original = written[0].read_text(), find_config("clinc150/minilm_lora").path.read_text()
    assert "# lora-lightning fit --config minilm_lora.yaml " in text
    assert yaml.safe_load(text) == yaml.safe_load(original)


@pytest.mark.parametrize("study", STUDIES, ids=lambda config: str(config.name))
def test_a_copied_study_finds_its_bases(study: shipped.ShippedConfig, tmp_path: Path) -> None:
    written = copy_config(study.name, tmp_path)
    read = READERS[study.name.partition("/")[0]]
    bases = [base for base in read(written[0]).base if isinstance(base, Path)]
    assert bases
    assert written[1:] == bases
    originals = [(study.path.parent / base).resolve() for base in study.bases]
    for copy, original in zip(bases, originals, strict=True):
        assert yaml.safe_load(copy.read_text()) == yaml.safe_load(original.read_text())


@pytest.mark.parametrize("config", shipped.shipped_configs(), ids=lambda config: config.name)
def test_the_command_of_a_copy_names_files_that_are_there(config: shipped.ShippedConfig, tmp_path: Path) -> None:
    copy = copy_config(config.name, tmp_path)[0]
    command = next(line for line in copy.read_text().splitlines() if line.startswith(shipped.COMMAND))
    named = [word for word in command.split() if word.endswith(".yaml")]
    assert named
    assert all((tmp_path / word).is_file() for word in named), command


def test_a_config_that_was_copied_before_is_kept(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("mine")
    assert [path.name for path in copy_config("callbacks/all_monitors", tmp_path)] == ["all_monitors.yaml"]
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"


def test_a_copy_replaces_no_file(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"quickstart\.yaml exists already"):
        copy_config("studies/rank_quickstart", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.yaml"]
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "configs/quickstrat.yaml",
            "there is no config configs/quickstrat.yaml; did you mean configs/quickstart.yaml?",
        ),
        ("configs/clinc150/minlm_lora.yml", "configs/clinc150/minilm_lora.yaml"),
        ("./mine/my_trianing.yaml", "did you mean mine/my_training.yml?"),
        ("minilm_qlora", "did you mean configs/clinc150/minilm_qlora.yaml"),
        ("xyz.yaml", "`lora-lightning configs` lists those of this package."),
    ],
)
def test_a_missing_config_names_the_nearest(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_training.yml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        check_config_paths(["mine/my_training.yml", name])
    assert sentence in str(caught.value)
    assert "--copy" not in str(caught.value)


@pytest.mark.parametrize("name", ["configs/quickstart.yaml", "configs/quickstrat.yaml"])
def test_outside_a_checkout_a_shipped_config_can_be_copied(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="`lora-lightning configs --copy quickstart` puts it into the current"):
        check_config_paths([name])


@pytest.mark.parametrize(
    "text", ["model: null", "trainer:\n  max_epochs: 1\n", "{trainer: {max_epochs: 1}}", "a" * 5000]
)
def test_the_text_of_a_config_is_no_missing_file(text: str) -> None:
    check_config_paths([text])
