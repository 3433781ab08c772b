"""Whether rows that a model is to be judged on are rows that it was trained on: by the hashes of their content, which
preparing data leaves beside its blocks."""

import tempfile
from dataclasses import replace

from cluster.core.storage import Store
from jobs.common.artifact.manifest import Description
from jobs.common.config import Config, DataConfig, from_dict
from jobs.common.data.found.repeats import count_shared
from jobs.common.data.prepared import find_by_fingerprint
from jobs.common.training.find_job import find_job


def trained_on(about: Description, storage: Store, uri: str, label_column: str | None) -> int | None:
    """How many rows of a source the model's training rows have the content of; None where nobody knows: the prepared
    data of its training is no more in the storage, nor in that of its run. The source is prepared as that was, in a
    folder that goes again. Raises: DataError."""
    job = find_job(about.job)
    config = from_dict(job.config_type, about.config)
    fingerprint = str(about.data.get("fingerprint", ""))
    trained = find_by_fingerprint(storage, fingerprint) \
        or find_by_fingerprint(Store.open(config.run.storage), fingerprint)
    if trained is None:
        return None
    with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
        new = job.prepare(_of(config, uri, label_column), Store.open(folder), use_ray=False, say=_unsaid)
        return count_shared(new, trained)


def _unsaid(text: str) -> None:
    """What preparing says of rows that are looked at once, and then let go of, is of no use to anybody."""


def _of(config: Config, uri: str, label_column: str | None) -> Config:
    """The same preparation of another source, of which every row counts."""
    data: DataConfig = replace(config.data, uri=uri, val_uri=None, test_uri=None, duplicates="keep", leaks="report",
                               bad_rows="skip", bad_rows_most=0.99)
    return replace(config, data=replace(data, label_column=label_column) if label_column else data)
