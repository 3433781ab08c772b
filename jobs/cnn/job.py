"""The CNN job as the common life cycle sees it. Imports no TensorFlow."""

from jobs.cnn.config import CnnConfig
from jobs.cnn.data import check, describe, files, prepare, sections
from jobs.common.training.job import Job
from jobs.common.vision.data_report import image_data_sections
from jobs.common.vision.judging import judge_images

JOB = Job(
    package="jobs.cnn", config_type=CnnConfig, config_path="jobs.cnn.config:CnnConfig", train="jobs.cnn.train:train",
    check=check, prepare=prepare, judge=judge_images, describe=describe, files=files, sections=sections,
    data_sections=image_data_sections, any_workers=True,
)
