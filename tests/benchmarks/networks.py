"""The textbook network as a function of a user's, for the PyTorch job."""

from torch import Tensor, nn

from jobs.common.vision.build_info import BuildInfo


class Textbook(nn.Module):
    """784 → 128 → 10, as jobs/mlp/textbook.yaml has it."""

    def __init__(self, pixels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.flatten(1))


def textbook(info: BuildInfo) -> nn.Module:
    height, width, channels = info.shape
    return Textbook(height * width * channels, info.num_classes)
