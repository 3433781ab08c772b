"""`trainyard.load`: a finished model in a program, asked with whatever its caller has."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import trainyard as ty
from cluster.core.errors import DataError, TrainyardError
from jobs.common.artifact.artifact import open_artifact
from jobs.common.predictor.find import load_predictor
from tests import kept

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")  # MLflow's
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)


@pytest.fixture(scope="module")
def images() -> Any:
    return ty.load(str(kept.artifact("mlp")))


@pytest.fixture(scope="module")
def texts() -> Any:
    return ty.load(str(kept.artifact("transformer")))


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    return file.getvalue()


def test_images_may_be_an_array_files_or_columns(images: Any, tmp_path: Path) -> None:
    found = images.predict(IMAGES, top_k=2)
    wanted = load_predictor(open_artifact(kept.artifact("mlp"))).predict(IMAGES)
    assert found["probabilities"] == pytest.approx(wanted)
    assert found["predicted"].tolist() == [images.labels[code] for code in wanted.argmax(1)]
    assert found["top_probabilities"].shape == (5, 2)
    files = [png(image) for image in IMAGES]
    for number, data in enumerate(files):
        (tmp_path / f"{number}.png").write_bytes(data)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(IMAGES.reshape(-1)), 784)
    for rows in (files, sorted(map(str, tmp_path.iterdir())), [{"image": data} for data in files],
                 {"image": IMAGES}, {"image": files}, pa.table({"image": pixels, "id": range(5)})):
        assert images.predict(rows)["probabilities"] == pytest.approx(wanted), type(rows)


def test_texts_and_what_goes_on_after_them(texts: Any) -> None:
    rows = ["Deutschland", "the United States"]
    found = texts.predict(rows)
    for same in ({"text": rows}, [{"text": row, "id": 1} for row in rows], np.array(rows)):
        assert texts.predict(same)["probability"] == pytest.approx(found["probability"])
    assert set(found["predicted"]) <= set(texts.labels)
    writer = ty.load(str(kept.artifact("lm")))
    assert writer.predict(["def main("])["tokens"].shape == (1,) and writer.labels == ()


def test_a_registered_model_is_found_by_its_alias(tmp_path: Path) -> None:
    storage = kept.storage(tmp_path / "storage")
    assert ty.load("models:/mlp@candidate", storage=str(storage)).artifact.uri == str(storage / "mlp/artifact")
    with pytest.raises(TrainyardError, match="has no models:/mlp@champion: it has version 1 @candidate"):
        ty.load("models:/mlp@champion", storage=str(storage))
    (storage / "mlp/artifact/model.safetensors").write_bytes(b"")
    with pytest.raises(TrainyardError, match=r"is refused: model\.safetensors differs"):
        ty.load("models:/mlp/1", storage=str(storage))


@pytest.mark.parametrize(("rows", "said"), [
    (IMAGES[0], r"tensor 'image' is UINT8 \(-1, 28, 28, 1\): got uint8 \(28, 28, 1\)"),
    (IMAGES.astype(np.float32), "got float32"), (IMAGES[:0], "there are no rows"), ([], "no column 'image'"),
    ([png(IMAGES[0]), b"no picture"], "row 1 cannot be decoded as an image"),
    (["/nothing.png"], "rows of list are not"),
    ({"picture": [b""]}, "has no column 'image', which the model takes"), ("one", "they are no rows"),
    ({"image": IMAGES, "more": IMAGES}, "the model takes image: got image, more"), (7, "they are no rows"),
    ([3, 4], "an image is the bytes of a file, or its path, not int")])
def test_rows_that_it_does_not_take_are_named(rows: Any, said: str, images: Any) -> None:
    with pytest.raises(DataError, match=said):
        images.predict(rows)


@pytest.mark.parametrize(("rows", "said"), [
    ([3, 4], "column 'text' holds int64, not text"), (["one", " "], "row 1 holds no text"), ([None], "not text"),
    (["x" * 300_000], "the texts have 300,000 characters")])
def test_texts_that_it_does_not_take_are_named(rows: Any, said: str, texts: Any) -> None:
    with pytest.raises(DataError, match=said):
        texts.predict(rows)
