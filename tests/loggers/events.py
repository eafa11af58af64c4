"""What TensorBoard reads from a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from lora_lightning.runs.layout import EVENTS


@dataclass(frozen=True)
class HParams:
    """A run's row of HParams.

    Attributes:
        columns: The settings that the run lists, by name: whether they are said to differ between runs.
        settings: Their values.
        results: Tags of the results that it lists.
        statuses: How its sessions ended; TensorBoard shows the first.
    """

    columns: dict[str, bool]
    settings: dict[str, Any]
    results: list[str]
    statuses: list[int]


def read(run: Path) -> list[EventAccumulator]:
    """The event files of a run, oldest first."""
    files = sorted(run.glob(EVENTS), key=lambda path: path.stat().st_mtime_ns)
    return [
        EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload() for file in files
    ]


def tags(run: Path, kind: str = "scalars") -> set[str]:
    """All tags of a kind: `scalars`, `images`, `histograms`, `tensors`."""
    return {tag for events in read(run) for tag in events.Tags()[kind]}


def scalars(run: Path) -> dict[str, list[float]]:
    """The values of each curve."""
    found: dict[str, list[float]] = {}
    for events in read(run):
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    return found


def texts(run: Path) -> dict[str, list[str]]:
    """The cards of text, by name."""
    found: dict[str, list[str]] = {}
    for events in read(run):
        for tag in events.Tags()["tensors"]:
            if tag.endswith("/text_summary"):
                name = tag.removesuffix("/text_summary")
                found.setdefault(name, []).extend(
                    event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)
                )
    return found


def hparams(run: Path) -> HParams:
    """The row of HParams; like TensorBoard, it takes the first value of each kind."""
    content: dict[str, bytes] = {}
    statuses = []
    for events in read(run):
        for tag, about in events.summary_metadata.items():
            if about.plugin_data.plugin_name == metadata.PLUGIN_NAME:
                content.setdefault(tag, about.plugin_data.content)
            if tag == metadata.SESSION_END_INFO_TAG:
                statuses.append(metadata.parse_session_end_info_plugin_data(about.plugin_data.content).status)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    settings = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    columns = {info.name: info.differs for info in experiment.hparam_infos}
    return HParams(columns, settings, [info.name.tag for info in experiment.metric_infos], statuses)
