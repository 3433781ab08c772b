"""The MLP job as the common life cycle sees it. Imports no torch."""

from jobs.common.training.job import Job
from jobs.common.vision.data_report import image_data_sections
from jobs.common.vision.job import prepare_images
from jobs.common.vision.judging import judge_images
from jobs.mlp.config import MlpConfig
from jobs.mlp.data import check, describe, files, sections

JOB = Job(
    package="jobs.mlp", config_type=MlpConfig, config_path="jobs.mlp.config:MlpConfig", train="jobs.mlp.train:train",
    preload=["jobs.mlp.train"], check=check, prepare=prepare_images, judge=judge_images, describe=describe, files=files,
    sections=sections, data_sections=image_data_sections, any_workers=True,
)
