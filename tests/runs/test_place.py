"""A run's folder has many spellings, which are no settings of the run."""

from lora_lightning.runs.place import without_place
from lora_lightning.runs.settings import flatten


def logger(kind: str, **options: object) -> dict[str, object]:
    return {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": options}


def test_where_folder_loggers_write_is_left_out() -> None:
    place = {"save_dir": "logs", "name": "run", "version": 3}
    one = flatten({"trainer": {"logger": logger("TensorBoardLogger", **place, log_graph=True), "max_epochs": 2}})
    assert without_place(one) == flatten(
        {"trainer": {"logger": logger("TensorBoardLogger", log_graph=True), "max_epochs": 2}}
    )
    several = [logger("CSVLogger", **place), logger("WandbLogger", **place), True]
    assert without_place({"trainer.logger": several}) == {
        "trainer.logger": [logger("CSVLogger"), logger("WandbLogger", **place), True]
    }
    assert without_place(flatten({"trainer": {"logger": logger("WandbLogger", **place)}})) == flatten(
        {"trainer": {"logger": logger("WandbLogger", **place)}}
    )
    assert without_place({"trainer.logger": None}) == {"trainer.logger": None}
