"""The textbook network as a function of a user's, for the PyTorch job."""

from torch import nn

from jobs.common.vision.build_info import BuildInfo


def textbook(info: BuildInfo) -> nn.Module:
    """784 → 128 → 10, as jobs/mlp/textbook.yaml has it."""
    height, width, channels = info.shape
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, 128), nn.ReLU(),
                         nn.Linear(128, info.num_classes))
