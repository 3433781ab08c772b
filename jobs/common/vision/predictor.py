"""Images as rows of a model: tensors as they are, and picture files, which a person has, made to the model's size."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact, refused
from jobs.common.artifact.manifest import Description
from jobs.common.picture import MODES, SENT_FORMATS, PictureError, open_picture, picture_pixels
from jobs.common.picture_rule import MOST_PIXELS, PictureRule
from jobs.common.vision.features import image_features

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


def picture_rule(about: Description) -> PictureRule:
    """How picture files become what a model takes: as those it was trained on did, and of its size.
    Raises: ValueError."""
    height, width, channels = about.preprocessing["shape"]
    rule = PictureRule.from_dict(about.preprocessing.get("picture", {}))  # an earlier version wrote none
    return replace(rule, size=(height, width), channels=channels)


def image_rows(images: Array, rule: PictureRule, dtype: str) -> Array:
    """images: (B, H, W, C), or (B,) of the bytes of picture files. Raises: InputError."""
    if images.dtype != object:
        return images
    if rule.channels not in MODES:
        raise InputError(f"no picture file has {rule.channels} channels, as this model takes: send pixels")
    opened: list[ImageFile] = []
    pixels = 0
    try:
        for data in images:
            opened.append(open_picture(data, SENT_FORMATS))
            pixels += opened[-1].width * opened[-1].height
            if pixels > MOST_PIXELS:
                raise InputError(f"the image files of a request may have {MOST_PIXELS:,} pixels together, and these "
                                 f"have more (one has {opened[-1].width} × {opened[-1].height}): make them smaller, or "
                                 "send fewer")
        rows = np.stack([picture_pixels(image, rule) for image in opened])
    except PictureError as error:
        raise InputError(f"an image file of the request {error}") from None
    return rows if dtype == "UINT8" else rows.astype(np.float32)


def image_inputs(artifact: Artifact, images: Array) -> tuple[Array]:
    """Of an ONNX graph."""
    return (images,)


class GraphPredictor:
    """What answers about images have in common, whatever computes them: all but `load`."""

    def __init__(self, model: Any, artifact: Artifact) -> None:
        """model: the artifact's, which gives probabilities (B, K) for images (B, H, W, C) by `predict`, and what they
        rest on by `explain`. Raises: ArtifactError."""
        about = artifact.manifest.description
        try:
            self._rule = picture_rule(about)
        except ValueError as error:
            raise refused(artifact.uri, [str(error)]) from error
        self._model, self._datatype = model, about.inputs[0].datatype
        self._mean, self._seed = about.data.get("mean", 0.0), int(about.config.get("run", {}).get("seed", 0))
        self._artifact = artifact

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        return image_rows(inputs["image"], self._rule, self._datatype)

    def predict(self, rows: Array) -> Array:
        return self._model.predict(rows)

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {"probabilities": predicted}

    @property
    def changes(self) -> Sequence[str]:
        from jobs.common.vision.robustness import CHANGES  # which draws pages: serving does without it

        return tuple(CHANGES)

    def change(self, name: str, inputs: Mapping[str, Array], row_ids: Array) -> Mapping[str, Array]:
        """As a run's report changes its test rows; the range of floats is that of the artifact's own rows."""
        from jobs.common.vision.robustness import changed_images

        known = self._artifact.probe().inputs["image"]
        limits = (0.0, 255.0) if self._datatype == "UINT8" else (float(known.min()), float(known.max()))
        return {"image": changed_images(name, self.decode(inputs), row_ids, self._seed, limits)}

    def features(self, rows: Array) -> dict[str, Array]:
        return dict(image_features(rows, self._mean))


class ImagePredictor(GraphPredictor):
    """The same by a model that can say what its answers rest on."""

    def explain(self, row: Array) -> Mapping[str, Array]:
        predicted = self._model.predict(row).argmax(1)
        attributions, gaps, differences = self._model.explain(row, predicted)
        return {"predicted": predicted, "attributions": attributions, "difference": differences, "gap": gaps}
