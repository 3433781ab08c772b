"""Image data for any job: where it may come from, and its options.

    --data.uri digits               the embedded digits
    --data.uri FILE.parquet         Parquet: a file, a folder of them, or a pattern such as 'DIR/*.parquet'
    --data.uri DIR                  a folder with IDX files (train-images-idx3-ubyte[.gz] …), with WebDataset's tars
                                    (train-000.tar …), or one sub-folder a class
Each may also lie on s3://, gs:// or hf://datasets/OWNER/NAME. Files or sub-folders named train, validation and test are
taken as these splits.
"""

from dataclasses import dataclass, replace
from typing import Literal

from cluster.core.errors import DataError
from jobs.common.data.dataset import Dataset
from jobs.common.data.files import FORMATS, Listing, list_files
from jobs.common.data.source import Source
from jobs.common.data.webdataset import is_tar
from jobs.common.picture import ENDINGS
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.sources.digits import DigitsSource
from jobs.common.vision.sources.folder import FolderSource, is_picture
from jobs.common.vision.sources.idx import IMAGES, IdxSource
from jobs.common.vision.sources.parquet import Columns, ParquetSource
from jobs.common.vision.sources.tar import TarSource

_TRIED = 20
"""Files without an ending that are looked into, to tell what a folder is."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What all images of a prepared set have in common."""

    shape: tuple[int, int, int]
    """Height, width, channels."""
    dtype: Literal["uint8", "float32"]
    mean: tuple[float, ...]
    """Of each channel over the training pixels, in pixel units."""
    std: tuple[float, ...]
    """As `mean`; 1 for a channel that is constant, so that it can be divided by."""

    @staticmethod
    def of(dataset: Dataset) -> "ImageFacts":
        about = dataset.details
        height, width, channels = about["shape"]
        return ImageFacts(shape=(height, width, channels), dtype=about["dtype"], mean=tuple(about["mean"]),
                          std=tuple(about["std"]))


def image_shape(text: str | None) -> tuple[int, int, int] | None:
    """`28x28x1` -> (28, 28, 1); one channel where none is named."""
    if text is None:
        return None
    height, width, *channels = (int(part) for part in text.split("x"))
    return height, width, channels[0] if channels else 1


def find_source(uri: str, config: ImageDataConfig) -> Source:
    """The source at a URI, its format found from its files. Raises: DataError."""
    if uri == "digits":
        return DigitsSource()
    files = list_files(uri)
    parquet = tuple(file for file in files.files if file.path.lower().endswith((".parquet", ".pq")))
    if parquet:
        columns = Columns(config.image_column, config.label_column, image_shape(config.image_shape), config.picture)
        return ParquetSource(files, parquet, columns, config.layout)
    if any(IMAGES.fullmatch(file.path.lower()) for file in files.files):
        return IdxSource(files, _beside(files), config.layout)
    if tars := tuple(file for file in files.files if is_tar(file.path)):
        return TarSource(files, tars, config.label_column, config.picture, config.layout)
    if _has_pictures(files):
        return FolderSource(files, config.picture, config.layout, config.class_folder)
    raise DataError(f"data {uri!r}: cannot tell what it is from its {len(files.files)} files ({files.files[0].path} "
                    f"…): give {FORMATS}")


def _has_pictures(files: Listing) -> bool:
    """Files without an ending are looked into last, and only some."""
    bare = [file.path for file in files.files if "." not in file.path.rpartition("/")[2]]
    return (any(file.path.lower().endswith(ENDINGS) for file in files.files)
            or any(is_picture(files.store, path) for path in bare[:_TRIED]))


def _beside(files: Listing) -> Listing:
    """All files of the folder: the labels of a file that was named alone lie beside it."""
    return replace(files, files=tuple(files.store.files(recursive=False)) if len(files.files) == 1 else files.files)
