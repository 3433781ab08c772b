"""What a job declares of its metrics decides what is shown, looked for and chosen, whatever the task."""

import pytest

from cluster.core.errors import ConfigError
from jobs.common import declared_metrics
from jobs.common.declared_metrics import CLASSIFICATION, Metric, chosen, headlines, reported, searchable

AGES = (Metric("rmse", "min", "RMSE", "years", primary=True, while_training="rmse"), Metric("r2", "max", "R²"))
FOUND = {"rmse": 3.25, "rmse_low": 3.0, "rmse_high": 3.5, "r2": 0.5}


def test_the_summary_and_the_table_name_unit_and_interval_and_nothing_of_another_task():
    assert headlines(AGES, FOUND) == [("test RMSE", "3.2500 years (95% interval 3.0000 to 3.5000)"), ("R²", "0.5000")]
    assert declared_metrics.rows(AGES, [FOUND, {"rmse": 12345.6}]) == [
        ["RMSE (years)", "3.2500", "12,346"], ["… its 95% interval", "3.0000 to 3.5000", "–"], ["R²", "0.5000", "–"]]
    assert headlines(AGES, {}) == []


def test_a_search_may_look_for_what_is_reported_while_training():
    assert searchable(AGES) == {"validation_rmse": "min"}
    assert searchable(CLASSIFICATION) == {"validation_accuracy": "max", "validation_loss": "min"}


def test_a_metric_that_is_not_declared_or_not_reported_is_named_with_those_that_are():
    assert chosen(CLASSIFICATION, "loss").name == "log_loss"
    with pytest.raises(ConfigError, match=r"--eval\.metric rmse: this job's evaluations report accuracy, loss"):
        chosen(CLASSIFICATION, "rmse")
    with pytest.raises(ConfigError, match=r"--eval\.metric rmse: evaluations on this data report loss, mae: use one"):
        reported(AGES[0], {"loss": 1.0, "mae": 2.0})
