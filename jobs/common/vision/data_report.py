"""What data.html shows of images: examples of each class, pixels, pictures unlike the others, and nearly the same ones.

All of it is of at most a few thousand rows; they are compared as pictures of at most 16 × 16 pixels.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.near_duplicates import nearest_pairs
from jobs.common.data.found.row_sample import RowSample
from jobs.common.report import html
from jobs.common.report.data_report import class_of, pair_name, pictures
from jobs.common.report.html import Section
from jobs.common.report.images import data_uri
from jobs.common.vision.config import ImageConfig
from jobs.common.vision.dataset import ImageFacts

Features = npt.NDArray[np.float32]
CLASSES, EXAMPLES, ODD_ROWS = 20, 6, 8
SIDE = 16
LEAST_ROWS = 5
"""Of a class, to tell which of its rows are unlike the others."""
FAR = 2.0
"""Times the usual distance from the median of the class: what is further is odd."""
CONSTANT = 0.01
"""Of the usual deviation of pixels: a picture that has less is nearly of one colour."""
_SHOWN_SIDE = 112
_ROWS_AT_ONCE = 64


def image_data_sections(config: ImageConfig, dataset: Dataset) -> list[Section]:
    sample = RowSample.of(dataset, config.data)
    features = pooled(sample.columns["image"])
    return [_pixels(dataset, sample), _examples(dataset, sample), _odd(dataset, sample, features),
            _near_duplicates(dataset, sample, features)]


def pooled(images: Array) -> Features:
    """(n, D): the means of at most 16 × 16 fields of each picture, on a scale on which their deviation is 1."""
    fields = [np.unique(np.linspace(0, side, min(side, SIDE) + 1).astype(int)) for side in images.shape[1:3]]
    areas = np.outer(*(np.diff(edges) for edges in fields))[None, :, :, None]
    parts: list[Array] = []
    for start in range(0, len(images), _ROWS_AT_ONCE):
        sums = images[start : start + _ROWS_AT_ONCE]
        for axis, edges in enumerate(fields, 1):
            sums = np.add.reduceat(sums, edges[:-1], axis=axis, dtype=np.float64)
        parts.append((sums / areas).reshape(len(sums), -1))
    means = np.concatenate(parts) if parts else np.zeros((0, 1))
    means -= means.mean() if len(means) else 0
    return (means / (means.std() or 1.0) if len(means) else means).astype(np.float32)


def _pixels(dataset: Dataset, sample: RowSample) -> Section:
    """By channel."""
    facts, images = ImageFacts.of(dataset), sample.columns["image"]
    height, width, channels = facts.shape
    lowest, highest = images.min(axis=(0, 1, 2)), images.max(axis=(0, 1, 2))
    intro = (f"Each picture is {height} pixels high and {width} wide, of {channels} channel{'s' * (channels != 1)} "
             f"({facts.dtype}). Mean and deviation are of all training pixels, least and greatest "
             f"of {sample.counted(dataset)}.")
    return html.section("Pixels", intro, ["channel", "mean", "deviation", "least", "greatest"],
                        [(f"{k}", facts.mean[k], facts.std[k], float(lowest[k]), float(highest[k]))
                         for k in range(channels)])


def _examples(dataset: Dataset, sample: RowSample) -> Section:
    found = list(sample.by_class(EXAMPLES))
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(CLASSES, len(found))).astype(int))]
    more = f" {len(chosen)} of {len(dataset.class_names):,} classes." if len(chosen) < len(dataset.class_names) else ""
    return pictures("Examples", f"Some of each class, of {sample.counted(dataset)}.{more}",
                    [([_uri(sample, row) for row in rows.tolist()], dataset.class_names[code])
                     for code, rows in chosen], size=64)


def _uri(sample: RowSample, row: int) -> str:
    return data_uri(sample.columns["image"][row], _SHOWN_SIDE)


# ── unlike the others ──
def odd_pictures(features: Features, images: Array, labels: Array) -> list[tuple[int, str]]:
    """Rows and what is odd about them: nearly of one colour, or far from the middle of their class; at most eight of
    each."""
    deviations = np.array([float(image.std(axis=(0, 1), dtype=np.float64).max()) for image in images])
    flat = np.flatnonzero(deviations <= CONSTANT * np.median(deviations)) if len(deviations) else np.zeros(0, int)
    flat = flat if len(flat) <= len(images) / 2 else flat[:0]
    found = [(row, "nearly of one colour") for row in flat.tolist()[:ODD_ROWS]]
    far = sorted(_far(features, labels), key=lambda each: -each[1])[:ODD_ROWS]
    return [*found, *((row, f"{times:.1f} times as far from the middle of its class as is usual")
                      for row, times in far if row not in set(flat.tolist()))]


def _far(features: Features, labels: Array) -> Iterator[tuple[int, float]]:
    for code in np.unique(labels):
        rows = np.flatnonzero(labels == code)
        if len(rows) >= LEAST_ROWS:
            of_class = features[rows].astype(np.float64)
            distances = np.sqrt(np.square(of_class - np.median(of_class, axis=0)).sum(axis=1))
            times = distances / (np.median(distances) or np.inf)
            yield from ((int(rows[i]), float(times[i])) for i in np.flatnonzero(times > FAR))


def _odd(dataset: Dataset, sample: RowSample, features: Features) -> Section:
    rows = odd_pictures(features, sample.columns["image"], sample.columns["label"])
    intro = (f"Of {sample.counted(dataset)}: those nearly of one colour, and those more than {FAR:g} times as "
             "far from the middle of their class as is usual. Often a wrong label, a broken file, or a rare kind.")
    return pictures("Odd rows", intro, [([_uri(sample, row)], f"{class_of(dataset, sample, row)}: {why} "
                                         f"({sample.name(row)})") for row, why in rows])


# ── nearly the same ──
def _near_duplicates(dataset: Dataset, sample: RowSample, features: Features) -> Section:
    images = sample.columns["image"]
    found = nearest_pairs(features, [image.tobytes() for image in images])
    intro = (f"Pairs that are nearest to each other but not the same, of {sample.counted(dataset)}. Two pictures "
             "of one thing in two splits make scores too good; under two labels, one of them may be wrong.")
    rows = [([_uri(sample, pair.first), _uri(sample, pair.second)],
             f"{' and '.join(dict.fromkeys(class_of(dataset, sample, row) for row in pair[:2]))}: {pair.value:.1%} of "
             f"the usual distance ({pair_name(sample, pair)})") for pair in found]
    return pictures("Near-duplicates", intro, rows)
