"""The job for tables, as the common life cycle sees it. Imports no torch."""

from jobs.common.tables.data_report import table_data_sections
from jobs.common.tables.judging import judge_table, metrics
from jobs.common.training.job import Job
from jobs.tabular.config import TabularConfig
from jobs.tabular.data import check, describe, files, prepare_table, sections

JOB = Job(
    package="jobs.tabular", config_type=TabularConfig, config_path="jobs.tabular.config:TabularConfig",
    train="jobs.tabular.train:train", preload=["jobs.tabular.train"], check=check, prepare=prepare_table,
    judge=judge_table, describe=describe, files=files, sections=sections,
    data_sections=table_data_sections, metrics=metrics, any_workers=True,
)
