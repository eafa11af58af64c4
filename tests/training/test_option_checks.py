"""A metric is not monitored in the wrong direction."""

import warnings

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.training.option_checks import check_monitor_mode


@pytest.mark.parametrize(
    "monitor",
    ["val/accuracy", "val/domain_accuracy/travel", "val_matched/f1_at_threshold", "val/a/accuracy", "accuracy"],
)
def test_the_lowest_of_what_is_better_when_higher_is_refused(monitor: str) -> None:
    with pytest.raises(ConfigurationError, match=r"a higher .* is better; set --checkpoint.mode max"):
        check_monitor_mode(monitor, "min")
    check_monitor_mode(monitor, "max")


@pytest.mark.parametrize("monitor", ["val/loss", "val/loss/travel", "val/perplexity", "val_loss"])
def test_the_highest_of_what_is_better_when_lower_is_refused(monitor: str) -> None:
    with pytest.raises(ConfigurationError, match=r"a lower .* is better; set --checkpoint.mode min"):
        check_monitor_mode(monitor, "max")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_monitor_mode(monitor, "min")


def test_the_default_is_said_for_a_metric_whose_direction_is_not_known() -> None:
    with pytest.warns(UserWarning, match="the best checkpoint is that with the lowest val/bleu"):
        check_monitor_mode("val/bleu", "min")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_monitor_mode("val/bleu", "max")
