"""The Transformer job as the common life cycle sees it. Imports no torch."""

from jobs.common.training.job import Job
from jobs.transformer.config import TransformerConfig
from jobs.transformer.data import check, describe, files, metrics, sections, verdict_of
from jobs.transformer.text.data_report import text_data_sections
from jobs.transformer.text.prepare import prepare

JOB = Job(
    package="jobs.transformer", config_type=TransformerConfig, config_path="jobs.transformer.config:TransformerConfig",
    train="jobs.transformer.train:train", preload=["jobs.transformer.train"], check=check, prepare=prepare,
    judge=verdict_of, describe=describe, files=files, sections=sections,
    data_sections=text_data_sections, metrics=metrics, any_workers=True,
)
