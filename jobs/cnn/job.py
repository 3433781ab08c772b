"""The CNN job as the common life cycle sees it. Imports no TensorFlow."""

from jobs.cnn.config import CnnConfig
from jobs.cnn.data import check, describe, files, prepare, sections
from jobs.common.evaluation.classification import judge_images
from jobs.common.training.job import Job

JOB = Job(
    package="jobs.cnn", config_type=CnnConfig, config_path="jobs.cnn.config:CnnConfig", train="jobs.cnn.train:train",
    check=check, prepare=prepare, judge=judge_images, describe=describe, files=files, sections=sections,
)
