"""A replica on real rows: what is wrong with one request is that request's alone, and what a picture may be."""

import asyncio
import io
import zlib
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.core.storage import Store
from jobs.common.artifact.artifact import WEIGHTS, Probe, weights_file, write_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.picture_rule import MOST_PIXELS
from jobs.mlp.model import Mlp
from jobs.mlp.model import load as load_images
from jobs.transformer.predictor import LikelihoodPredictor
from serving.core.errors import BadRequestError
from serving.core.settings import ModelSettings
from serving.model.replica import Replica, answers
from tests.unit.language_model import language_model

# Ray Serve's, of Pydantic
PYDANTIC = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")
pytestmark = PYDANTIC
ROWS = 64


def description(job: str, spec: TensorSpec, **fields: Any) -> Description:
    return Description(job=job, task="classification", inputs=(spec,), labels=("a", "b"), about="A test's.", metrics={},
                       data={},
                       outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),), **fields)


def image_model(folder: Path) -> Replica:
    spec = TensorSpec(name="image", datatype="UINT8", shape=(-1, 28, 28, 1))
    torch.manual_seed(0)
    weights = {name: tensor.numpy()
               for name, tensor in Mlp((28, 28, 1), 2, (8,), 0.0, (0.0,), (255.0,)).state_dict().items()}
    about = description("mlp", spec, preprocessing={"mean": [0.0], "std": [255.0], "shape": [28, 28, 1],
                                                    "picture": {"fit": "pad"}},
                        config={"model": {"hidden": [8], "dropout": 0.0}})
    rows = np.zeros((2, 28, 28, 1), np.uint8)

    def write(answers: Any) -> Any:
        return write_artifact(Store.open(str(folder)), "images", description=about,
                              files={WEIGHTS: weights_file(weights)},
                              probe=Probe(inputs={"image": rows}, outputs={"probabilities": answers}))

    return replica(write(load_images(write(np.zeros((2, 2), np.float32)).uri).predict(rows)))


def replica(artifact: Any) -> Replica:
    return Replica(asdict(ModelSettings(name="m", version="1", uri=artifact.uri, digest=artifact.digest,
                                        max_batch_rows=ROWS)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return image_model(tmp_path_factory.mktemp("images"))


@cache
def picture(form: str, size: tuple[int, int] = (5000, 5000), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, "white").save(file, form, **options)
    return file.getvalue()


def with_profiles(count: int) -> bytes:
    """A PNG with colour profiles of a megabyte, each packed into a kilobyte."""
    data = picture("PNG", (4, 4))
    body = b"iCCP" + b"p\0\0" + zlib.compress(bytes(1_000_000))
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:33] + chunk * count + data[33:]


@pytest.mark.parametrize("bad", [
    b"", b"no image", b"DDS " + (124).to_bytes(4, "little") + bytes(120), picture("GIF", (4, 4)),
    picture("TIFF", (4, 4)),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", picture("PNG", (40, 40))[:-30],
    picture("JPEG", (40, 40))[:200], b"\x89PNG\r\n\x1a\n" + bytes(40), b"RIFF\x10\0\0\0WEBPVP8L" + bytes(20),
], ids=["empty", "words", "DDS", "GIF", "TIFF", "EPS", "half a PNG", "half a JPEG", "PNG of zeros", "WebP of zeros"])
def test_a_file_that_is_no_picture_fails_its_own_request_alone(images: Replica, bad: bytes) -> None:
    files = [{"image": np.array([file], object)} for file in (picture("PNG", (40, 40)), bad)]
    rows = {"image": np.zeros((2, 28, 28, 1), np.uint8)}
    first, failed, last = asyncio.run(images.infer([files[0], files[1], rows]))
    assert isinstance(failed, BadRequestError)
    assert "cannot be decoded as an image" in str(failed)
    assert not isinstance(first, Exception) and not isinstance(last, Exception)
    assert (first["probabilities"].shape, last["probabilities"].shape) == ((1, 2), (2, 2))


@pytest.mark.parametrize("picture", [
    picture("PNG", (40, 40), "P", transparency=bytes(range(256))), picture("PNG", (40, 40), "LA"),
    picture("PNG", (40, 40), "1"),
    picture("PNG", (40, 40), "I;16"), picture("JPEG", (40, 40), "CMYK"), picture("WEBP", (40, 40), "RGBA"),
    with_profiles(1),
], ids=["palette", "grey with alpha", "bits", "16 bits", "CMYK", "WebP", "profile"])
def test_a_picture_of_any_kind_is_taken(images: Replica, picture: bytes) -> None:
    (found,) = asyncio.run(images.infer([{"image": np.array([picture], object)}]))
    assert not isinstance(found, Exception)


def test_a_page_learns_how_files_become_the_models_images(images: Replica) -> None:
    assert images.about()["picture"] == {"picture_fit": "pad"}


def test_files_of_as_many_pixels_as_may_be_are_taken_together(images: Replica) -> None:
    assert MOST_PIXELS == 2 * 5000 * 2500
    half = picture("PNG", (5000, 2500), "1")
    for files, taken in (([half, half], True), ([half, half, picture("PNG", (1, 1))], False)):
        (found,) = asyncio.run(images.infer([{"image": np.array(files, object)}]))
        assert isinstance(found, BadRequestError) is not taken


class Panic(BaseException):
    """As Rust's code raises it: no Exception."""


@pytest.mark.parametrize(("place", "error"), [
    ("decode", ValueError("odd")), ("predict", MemoryError()), ("predict", Panic("unwrapped")),
    ("encode", ValueError("odd"))])
def test_rows_that_the_model_fails_with_fail_their_own_request_alone(place: str, error: BaseException) -> None:
    class Model:
        @classmethod
        def load(cls, artifact: Any) -> Any: ...

        def decode(self, inputs: Any) -> Any:
            return self._through("decode", inputs["x"])

        def predict(self, rows: Any) -> Any:
            return self._through("predict", rows)

        def encode(self, predicted: Any) -> Any:
            return {"y": self._through("encode", predicted)}

        def _through(self, here: str, rows: Any) -> Any:
            if here == place and 13 in rows:
                raise error
            return rows

    found: list[Any] = answers(Model(), [{"x": np.array(values)} for values in ([1, 2], [13], [3])])
    assert [getattr(each, "status", None) for each in found] == [None, 500, None]
    assert [found[0]["y"].tolist(), found[2]["y"].tolist()] == [[1, 2], [3]]


def test_tokens_that_the_model_does_not_have_are_the_callers_mistake() -> None:
    model = LikelihoodPredictor(language_model())
    good: dict[str, Any] = {"tokens": np.array([[1, 2, 3, -1]], np.int32)}
    for bad in (-2, 257):
        first, failed, last = answers(model, [good, {"tokens": np.array([[1, bad, 1, 1]], np.int32)}, good])
        assert isinstance(failed, BadRequestError)
        assert "the model has the tokens 0 to 256, and -1 stands for none" in str(failed)
        assert not isinstance(first, Exception) and not isinstance(last, Exception)
