"""Answers of a finished model for new data, as a folder of Parquet: `trainyard predict`.

    trainyard predict --model models:/digits@champion --data.uri IN --out OUT.parquet
    trainyard predict --model ~/trainyard/first/artifact --data.uri 'IN/*.csv' --data.text-column said --out OUT.parquet

Each row keeps its columns, and gets `predicted`, `probability`, `probabilities`, `top_labels`, `top_probabilities`; of
numbers that are predicted `prediction`, of a model that writes `continuation`, with --embeddings `embedding`. On the
Ray cluster of --address or RAY_ADDRESS a pool of actors does it, which grows with the cluster; else this process. The
same command goes on where it was killed. OUT is complete once it has a _manifest.json; rows without an answer are in
OUT/_failed/failed.parquet, with the reason.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError, TrainyardError
from cluster.core.network import spare_loopback
from cluster.core.storage import Store
from jobs.common.config import RunConfig
from jobs.common.data.csv_config import CsvDataConfig
from jobs.common.predicting.model import find_model
from jobs.common.predicting.output import MANIFEST
from jobs.common.predicting.prediction import Pool, Prediction, Say, predict
from jobs.common.predicting.writer import Writing
from jobs.common.runs.console import RunConsole, duration, fail

PROG = "python -m jobs.common.predicting.predict"


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Carries out a command line. Returns the exit code; prints one message for an expected error."""
    asked, began = parser(prog).parse_args(arguments), time.time()
    spare_loopback()
    say = RunConsole().say
    try:
        found = _carried_out(asked, began, say)
    except TrainyardError as error:
        fail(str(error))
        return error.exit_code
    failed = f"; {found['failed']:,} without an answer are in _failed/failed.parquet" if found["failed"] else ""
    say(f"{found['rows']:,} rows with answers in {duration(time.time() - began)}{failed}")
    say(f"answers: {Store.open(asked.out).location()}")
    return 0


def _carried_out(asked: argparse.Namespace, began: float, say: Say) -> JsonObject:
    """Returns the manifest of the answers. The storage that has the model shows it. Raises: TrainyardError."""
    from jobs.common.runs.index_page import note_use  # slow to import, and not needed by --help
    from jobs.common.runs.overview import Use

    prediction, storage = _prediction(asked), Store.open(asked.storage)
    artifact = prediction.model.artifact
    use = Use(kind="prediction", model=prediction.model.name, artifact=artifact.uri, data=asked.uri, proof=MANIFEST,
              job=artifact.manifest.description.job, where=prediction.out.location(), began=began)
    begun: list[Use] = []

    def note(use: Use) -> None:
        begun.append(use)
        note_use(storage, asked.tracking_uri, use, say)

    found = predict(prediction, say, lambda: note(use))
    if begun:
        note(replace(use, wall_s=time.time() - began, rows=found["rows"], failed=found["failed"],
                     size=sum(file["size"] for file in found["files"])))
    return found


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/VERSION, or an artifact's path")
    add("--out", required=True, metavar="FOLDER", help="a path or URI; what is there of the same is gone on with")
    add("--overwrite", action="store_true", help="deletes the answers that are there, and begins again")
    add("--drop", default="", metavar="COLUMN,…", help="columns of the data that are not kept, such as the pictures")
    add("--top-k", type=int, default=Prediction.top_k, metavar="K", help="likeliest classes of a row")
    add("--embeddings", action="store_true", help="the vector of each text, of a model that offers them, not its class")
    add("--max-tokens", type=int, default=Writing.max_tokens, metavar="N", help="of a model that writes, of each row")
    add("--temperature", type=float, default=Writing.temperature, metavar="T", help="of it; 0: the likeliest token")
    add("--top-p", type=float, default=Writing.top_p, metavar="P")
    add("--seed", type=int, default=Writing.seed, metavar="N", help="of what is drawn")
    add_data(made)
    add_pool(made)
    return made


def add_data(made: argparse.ArgumentParser) -> None:
    """The options of where rows are, and of how they are read."""
    add = made.add_argument
    add("--data.uri", dest="uri", required=True, metavar="URI",
        help="a file, a folder or a pattern, also on s3://, gs:// or hf://: Parquet, CSV, JSON Lines; for a model of "
             "images also pictures or tars of them; for one of texts also .txt")
    add("--data.image-column", dest="image_column", metavar="NAME", help="by default as in training")
    add("--data.text-column", dest="text_column", metavar="NAME", help="by default as in training")
    add("--data.delimiter", dest="delimiter", metavar="CHARACTER", help="of CSV; by default a comma, in *.tsv a tab")
    add("--data.quoting", dest="quoting", choices=("auto", "none"), default="auto")
    add("--data.encoding", dest="encoding", help="of text files; by default UTF-8")
    add("--most-failed", type=float, default=Prediction.most_failed, metavar="SHARE",
        help="of the rows, that may be without an answer (default: %(default)s)")


def add_pool(made: argparse.ArgumentParser) -> None:
    """The options of who does it, and where the models are."""
    add = made.add_argument
    add("--batch-rows", type=int, metavar="N", help="that go through the model together; by default it is measured")
    add("--piece-mb", type=float, default=CsvDataConfig.piece_mb, metavar="MB",
        help="of the data, that are done and written in one go at most (default: %(default)s)")
    add("--address", help="of a Ray cluster; by default RAY_ADDRESS, else this process does it; `local` starts one")
    add("--workers", metavar="N or MIN:MAX", help="actors; by default as many as there is room for")
    add("--cpus-per-worker", type=int, metavar="N", help="and threads; by default 1, in this process all cores")
    add("--gpus-per-worker", type=int, default=0, metavar="N")
    add("--wait", type=float, default=RunConfig.wait, metavar="S",
        help="for resources that the cluster can have but has not now")
    add("--job", action="append", default=[], metavar="PACKAGE",
        help="a job outside Trainyard whose code may be imported for its models; give it again for more")
    add("--storage", default=RunConfig.storage, help="folder of the runs (default: %(default)s)")
    add("--tracking-uri", help="MLflow server; by default the SQLite file in the storage")


def data_of(asked: argparse.Namespace) -> CsvDataConfig:
    return CsvDataConfig(uri=asked.uri, delimiter=asked.delimiter, quoting=asked.quoting, encoding=asked.encoding,
                         piece_mb=asked.piece_mb)


def pool_of(asked: argparse.Namespace) -> Pool:
    return Pool(address=asked.address, workers=_workers(asked.workers), cpus=asked.cpus_per_worker,
                gpus=asked.gpus_per_worker, wait_s=asked.wait)


def _workers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    least, _, most = text.partition(":")
    if not (least.isdigit() and (most or least).isdigit() and 1 <= int(least) <= int(most or least)):
        raise ConfigError(f"--workers {text}: use N, or MIN:MAX with 1 <= MIN <= MAX")
    return int(least), int(most or least)


def _prediction(asked: argparse.Namespace) -> Prediction:
    return Prediction(
        data=data_of(asked), pool=pool_of(asked), out=Store.open(asked.out), image_column=asked.image_column,
        model=find_model(asked.model, asked.tracking_uri, Store.open(asked.storage), asked.job),
        text_column=asked.text_column, drop=tuple(name.strip() for name in asked.drop.split(",") if name.strip()),
        top_k=asked.top_k, batch_rows=asked.batch_rows, most_failed=asked.most_failed, overwrite=asked.overwrite,
        embeds=asked.embeddings,
        writing=Writing(max_tokens=asked.max_tokens, temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed))


if __name__ == "__main__":
    sys.exit(main())
