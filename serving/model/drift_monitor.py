"""How far what a replica is asked, and what it answers, is from its artifact's reference: a gauge a feature.

    request ─► decode ─► predict ─► the answer
                 └──────────┴─► at most ROWS_A_SECOND are kept ─► counted into bins ─► PSI over the last WINDOW_ROWS

`count` is called once a second, between requests, or by the model's own thread where it has one: what it costs does not
grow with the requests. The window holds the places of rows in bins, and nothing of what is in them.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import logging
from collections.abc import Callable

import numpy as np

from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.artifact.drift_reference import Reference, answer_features
from jobs.common.predictor.predictor import Predictor, Watched
from serving.core.settings import ModelSettings

ROWS_A_SECOND = 64
WINDOW_ROWS = 2000
MOST_NOISE = 0.05
"""A figure is shown once there are so many rows that in the mean it would be below this if nothing had changed."""
_log = logging.getLogger(__name__)


class Drift:
    """Of one replica. Used by the thread that predicts."""

    def __init__(self, reference: Reference, predictor: Watched, show: Callable[[str, float], None]) -> None:
        """show: gets a feature's name and figure."""
        self._predictor, self._show = predictor, show
        self._histograms = dict(reference.features)
        self._window = np.zeros((WINDOW_ROWS, len(self._histograms)), np.uint8)
        """The bin of each of the last rows, for each feature."""
        self._rows = 0
        self._kept: list[tuple[Array, Array]] = []
        self._room = ROWS_A_SECOND

    def see(self, rows: Array, predicted: Array) -> None:
        """Keeps some of them."""
        if self._room > 0:
            self._kept.append((rows[: self._room].copy(), predicted[: self._room].copy()))
            self._room -= len(rows)

    def count(self) -> None:
        """Counts what was kept, and shows the figures."""
        kept, self._kept, self._room = self._kept, [], ROWS_A_SECOND
        if kept:
            self._place(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))
        for name, figure in self.figures().items():
            self._show(name, figure)

    def _place(self, rows: Array, predicted: Array) -> None:
        columns = self._predictor.features(rows) | answer_features(self._predictor.encode(predicted))
        places = (self._rows + np.arange(len(rows))) % WINDOW_ROWS
        for at, (name, histogram) in enumerate(self._histograms.items()):
            self._window[places, at] = histogram.places(columns[name])
        self._rows += len(rows)

    def figures(self) -> dict[str, float]:
        """PSI by feature, over the last rows; without those for which they are too few."""
        seen = self._window[: self._rows]
        return {name: histogram.psi(np.bincount(seen[:, at], minlength=len(histogram.counts)))
                for at, (name, histogram) in enumerate(self._histograms.items())
                if histogram.noise(len(seen)) <= MOST_NOISE}


def watch(artifact: Artifact, predictor: Predictor, settings: ModelSettings) -> Drift | None:
    """None for an artifact without a reference, and for a model that does not classify. Raises: ArtifactError."""
    reference = artifact.reference()
    if reference is None or not isinstance(predictor, Watched):
        return None
    probe = artifact.probe()
    rows = predictor.decode(probe.inputs)
    known = predictor.features(rows) | answer_features(predictor.encode(predictor.predict(rows)))
    if strange := sorted(set(reference.features) - set(known)):
        _log.warning("artifact %s: drift of %s is not measured: this program does not know it", artifact.uri,
                     ", ".join(strange))
    from ray.util.metrics import Gauge

    gauge = Gauge("trainyard_serving_drift_psi", "How far a feature of requests or answers is from the reference.",
                  ("model", "version", "feature"))
    gauge.set_default_tags({"model": settings.name, "version": settings.version})
    return Drift(reference.only(known), predictor, lambda name, figure: gauge.set(figure, {"feature": name}))
