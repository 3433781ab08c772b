"""The job for a PyTorch module of yours, as the common life cycle sees it. Imports no torch."""

from jobs.common.training.job import Job
from jobs.common.vision.data_report import image_data_sections
from jobs.common.vision.job import prepare_images
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.data import check, describe, files, judge_module, metrics, sections

JOB = Job(
    package="jobs.pytorch", config_type=PytorchConfig, config_path="jobs.pytorch.config:PytorchConfig",
    train="jobs.pytorch.train:train", preload=["jobs.pytorch.train"], check=check, prepare=prepare_images,
    judge=judge_module, describe=describe, files=files, sections=sections,
    data_sections=image_data_sections, metrics=metrics, any_workers=True,
)
