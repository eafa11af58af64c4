"""TensorBoard's tab HParams: one row per run, with its settings and its results."""

import time
from typing import TYPE_CHECKING, Any

from lora_lightning.loggers.board import RunSettings, Value
from lora_lightning.runs.curves import RESULTS
from lora_lightning.runs.history import Ending

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary


def start_summaries(settings: RunSettings) -> "list[Summary]":
    """What TensorBoard needs to know of a run when it starts.

    TensorBoard takes the list of columns from any one of the runs. Every run therefore lists all settings, also those
    that it lacks, such as `r` of full fine-tuning.

    Args:
        settings: Of the run.

    Returns:
        The columns, and the values of the settings.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # noqa: PLC0415  # half a second

    # `differs` puts a column in front. It depends on other runs, which this one does not know.
    columns = [
        api_pb2.HParamInfo(name=name, type=_type_of(value), differs=name in settings.telling)
        for name, value in settings.main.items()
    ]
    results = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"{RESULTS}/{tag}"), display_name=tag)
        for tag in settings.results
    ]
    # Runs of one group would share a row.
    session = plugin_data_pb2.SessionStartInfo(group_name=settings.title, start_time_secs=time.time())
    for name, value in settings.main.items():
        if value is not None:
            _set(session.hparams[name], value)
    experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=results)
    return [
        _summary(metadata.EXPERIMENT_TAG, experiment=experiment),
        _summary(metadata.SESSION_START_INFO_TAG, session_start_info=session),
    ]


def end_summary(ending: Ending) -> "Summary":
    """What TensorBoard needs to know of a run when it ends.

    Args:
        ending: How it ended. TensorBoard has no word for an interrupted run, and shows it as a failed one.

    Returns:
        The status.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # noqa: PLC0415

    status = api_pb2.STATUS_SUCCESS if ending == "finished" else api_pb2.STATUS_FAILURE
    session = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=session)


def _type_of(value: Value | None) -> str:
    if isinstance(value, str):
        return "DATA_TYPE_STRING"
    return "DATA_TYPE_BOOL" if isinstance(value, bool) else "DATA_TYPE_FLOAT64"


def _set(field: Any, value: Value) -> None:
    if isinstance(value, str):
        field.string_value = value
    elif isinstance(value, bool):
        field.bool_value = value
    else:
        field.number_value = value


def _summary(tag: str, **content: Any) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2  # noqa: PLC0415

    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
