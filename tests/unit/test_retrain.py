"""A model that keeps up with its data: drift, training from the champion, gate, promotion, in one command."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.registry.__main__ import main as registry
from jobs.common.registry.connection import open_registry
from jobs.common.vision.sources.digits import DigitsFragment
from tests import kept
from trainyard.retrain import main

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")  # MLflow's
QUICK = ["--run.engine", "local", "--train.epochs", "3", "--eval.robustness-rows", "0"]


def digits(path: Path, rows: slice, brighter: int) -> Path:
    fragment = DigitsFragment()
    images = next(fragment.decode(fragment.spec())).pixels[rows].astype(int) + brighter
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(np.clip(images, 0, 255).astype(np.uint8).reshape(-1)), 784)
    pq.write_table(pa.table({"image": pixels, "label": fragment.labels().to_pylist()[rows]}), path)
    return path


def test_drifted_data_makes_a_version_that_is_promoted_and_then_is_no_drift(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = kept.storage(tmp_path / "storage")
    where = ["--storage", str(storage)]
    registry(["promote", "mlp", "1", *where])
    new = digits(tmp_path / "new.parquet", slice(0, 800), 100)
    holdout = digits(tmp_path / "holdout.parquet", slice(800, 1100), 100)
    old = digits(tmp_path / "old.parquet", slice(0, 800), 0)
    versions = open_registry(None, Store.open(str(storage)), "mlp")

    assert main(["mlp", "--data.uri", str(new), *where, "--", *QUICK]) == 2
    assert "say what a new version must show" in capsys.readouterr().err
    asked = ["mlp", "--holdout", str(holdout), *where]
    assert main([*asked, "--data.uri", str(old), "--", *QUICK]) == 0
    assert "nothing has to be done" in capsys.readouterr().out
    assert len(versions.versions("mlp")) == 1

    assert main([*asked, "--data.uri", str(new), "--", *QUICK]) == 0
    said = capsys.readouterr().out
    assert "a new version is trained" in said and "kept: accuracy better than that of mlp/1, the champion" in said
    champion = versions.resolve("models:/mlp@champion")
    assert champion.version == "2"
    about = open_artifact(champion.uri, champion.digest).manifest.description
    assert about.started_from[0].digest == versions.resolve("models:/mlp/1").digest
    assert about.config["data"]["uri"] == str(new)
    assert main([*asked, "--data.uri", str(new), "--", *QUICK]) == 0
    assert "nothing has to be done" in capsys.readouterr().out

    assert main([*asked, "--data.uri", str(old), "--always", "--", *QUICK]) == 1, "worse on the rows of today"
    assert "was trained, and not promoted" in capsys.readouterr().err
    assert versions.resolve("models:/mlp@champion").version == "2"
