"""Tables: what their columns are taken for, what is refused and how it is said, and what a model is told of them."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.core.errors import DataError, StoppedError
from cluster.core.storage import Store
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.reader import Reader
from jobs.common.tables.columns import Field, TableSchema, UnreadableValueError
from jobs.common.tables.config import TableDataConfig
from jobs.common.tables.prepare import Task, prepare
from tests.unit.piece_counts import pieces_made

CITIES = ("Berlin", "Paris", "Rome")


def rows_of(count: int = 60) -> dict[str, list[Any]]:
    """A table in which every kind occurs; `age` misses values."""
    rng = np.random.default_rng(0)
    return {"age": [None if i % 7 == 0 else int(rng.integers(18, 90)) for i in range(count)],
            "city": [CITIES[i % 3] for i in range(count)],
            "since": [f"2024-{i % 12 + 1:02d}-{i % 28 + 1:02d}" for i in range(count)],
            "size": [round(float(rng.normal()), 3) for _ in range(count)],
            "score": [round(float(rng.normal()), 3) for _ in range(count)]}


def csv(folder: Path, columns: dict[str, list[Any]], name: str = "rows.csv") -> Path:
    lines = [",".join(columns)] + [",".join("" if value is None else str(value) for value in row)
                                   for row in zip(*columns.values(), strict=True)]
    text = "\n".join(lines).encode()
    path = folder / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def prepared(folder: Path, uri: object, said: list[str] | None = None, **options: Any) -> Dataset:
    config = TableDataConfig(uri=str(uri), **{"label_column": "score", **options})
    return prepare(config, Store.open(str(folder / "storage")), say=(said if said is not None else []).append)


def fields(dataset: Dataset) -> dict[str, Field]:
    return {field.name: field for field in TableSchema.of(dataset.details["_fields"]).fields}


def split(dataset: Dataset, name: Any = "train") -> dict[str, Any]:
    reader = Reader.open(dataset, name, TableDataConfig())
    found = reader.rows(0, dataset.splits[name].num_rows)
    reader.close()
    return found


def test_columns_are_of_numbers_or_dates_if_all_values_are_and_else_of_categories(tmp_path: Path) -> None:
    said: list[str] = []
    found = prepared(tmp_path, csv(tmp_path, rows_of()), said)
    assert {name: field.kind for name, field in fields(found).items()} == {
        "age": "number", "city": "category", "since": "date", "size": "number"}
    assert fields(found)["city"].values == CITIES
    assert fields(found)["age"].misses and not fields(found)["size"].misses
    assert said == [f"preparing 60 rows of {tmp_path}/rows.csv: score (a number) from 2 numbers, 1 categories, 1 dates"]
    assert "_fields" not in found.describe()


def test_csv_compressed_csv_parquet_and_several_files_give_the_same_rows(tmp_path: Path) -> None:
    columns = rows_of()
    one = prepared(tmp_path, csv(tmp_path, columns))
    zipped = prepared(tmp_path, csv(tmp_path, columns, "rows.csv.gz"))
    typed = columns | {"since": pa.array(columns["since"]).cast(pa.date32())}
    pq.write_table(pa.table(typed), tmp_path / "rows.parquet")
    parquet = prepared(tmp_path, tmp_path / "rows.parquet")
    several = tmp_path / "several"
    several.mkdir()
    for place in range(3):
        csv(several, {name: values[20 * place : 20 * place + 20] for name, values in columns.items()}, f"{place}.csv")
    for other in (zipped, parquet, prepared(tmp_path, several)):
        apart = ("_examples", "_found", "_older_fingerprint")
        assert {k: v for k, v in other.details.items() if k not in apart} == {
            k: v for k, v in one.details.items() if k not in apart}
        assert all(np.array_equal(values, split(one)[name]) for name, values in split(other).items())


def test_what_the_model_is_told_is_of_the_training_rows_alone(tmp_path: Path) -> None:
    train, test = rows_of(40), rows_of(20)
    test["city"][3] = "Oslo"
    test["size"] = [value + 1000 for value in test["size"]]
    said: list[str] = []
    csv(tmp_path, test, "other.csv")
    found = prepared(tmp_path, csv(tmp_path, train), said, test_uri=str(tmp_path / "other.csv"))
    assert fields(found)["city"].values == CITIES
    numbers = split(found)["numbers"]
    assert numbers[:, 2:].mean(axis=0) == pytest.approx([0, 0], abs=1e-6), "a date's days, and the size"
    assert numbers[:, 2:].std(axis=0) == pytest.approx([1, 1], abs=1e-6)
    assert split(found, "test")["categories"][3, 0] == 0
    assert "1 validation and test rows have a missing value or a category that no training row has" in said[-1]


def test_numbers_that_stand_for_categories_and_columns_to_leave_out_are_named(tmp_path: Path) -> None:
    columns = rows_of() | {"id": list(range(60)), "post": [10115 + i % 4 for i in range(60)]}
    found = fields(prepared(tmp_path, csv(tmp_path, columns), ignore="id, size", categories="post"))
    assert set(found) == {"age", "city", "since", "post"}
    assert found["post"].values == ("10115", "10116", "10117", "10118")


@pytest.mark.parametrize(("values", "classes"), [
    (["no", "yes"], ("no", "yes")), ([0, 1], ("0", "1")), ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 11),
    ([1, 2], None), ([0, 2], None), ([0.5, 1.5], None), (["1e3", "2"], None)])
def test_the_target_is_classes_if_it_is_text_or_counts_from_0(values: list[Any], classes: Any, tmp_path: Path) -> None:
    columns = rows_of(110)
    columns["score"] = [values[i % len(values)] for i in range(110)]
    found = prepared(tmp_path, csv(tmp_path, columns))
    assert (len(found.class_names) == classes if isinstance(classes, int) else found.class_names == (classes or ()))
    if classes is None:
        assert prepared(tmp_path, tmp_path / "rows.csv",
                        label_column="score, size").details["targets"][1]["name"] == "size"


@pytest.mark.parametrize(("change", "options", "said"), [
    ({}, {"label_column": "scores"},
     r"there is no column 'scores' in .*rows\.csv, which has age, .*: name it, as in --data\.label-column score"),
    ({}, {"ignore": "ages"}, r"as in --data\.ignore age"),
    ({"score": [1.0] * 60}, {}, r"the target column 'score' is 1 in every training row"),
    ({"score": ["1"] * 59 + ["inf"]}, {"predict": "number"},
     r"row 59 of .*rows\.csv: the target's column 'score' is inf"),
    ({"score": [1, 2] * 29 + [None, 3]}, {}, r"row 58 of .*: the target column 'score' has no value: remove the row"),
    ({"score": ["1"] * 30 + ["many"] * 30}, {"predict": "number"},
     r"'many', which is no number: .*--data\.predict class"),
    ({"size": ["1"] * 20 + ["inf"] * 40}, {}, r"row 20 of .*: column 'size' is inf: a number must be finite"),
    ({"size": [""] * 60}, {}, r"column 'size' has no value in any training row: leave it out with --data\.ignore size"),
    ({"score": ["a"] * 60}, {}, r"column 'score' holds one class only")])
def test_what_cannot_be_learned_from_is_said_with_its_row_and_the_remedy(change: dict[str, list[Any]],
                                                                        options: dict[str, str], said: str,
                                                                        tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        prepared(tmp_path, csv(tmp_path, rows_of() | change), **options)


def test_too_many_texts_name_the_value_that_keeps_them_from_being_dates(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.common.tables.looking.MOST_CATEGORIES", 20)
    columns = rows_of()
    columns["since"][17] = "2024-13-01"
    with pytest.raises(DataError, match=r"'since' holds more than 20 different texts .*row 17 of .*'2024-13-01', which "
                                        r"is no date: write dates as .*--data\.ignore since"):
        prepared(tmp_path, csv(tmp_path, columns))


@pytest.mark.parametrize(("text", "said"), [
    ("a,b\n1,2\n1,2,3\n", r"rows\.csv cannot be read .*Expected 2 columns, got 3"),
    ("a,a\n1,2\n", r"has the column 'a' twice"),
    ("", r"is empty"), ("score\n1\n2\n", r"has no column but score")])
def test_a_file_that_is_no_table_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        prepared(tmp_path, tmp_path / "rows.csv", label_column="score" if "score" in text else "b")


def test_files_with_other_columns_and_types_that_are_none_of_the_kinds_are_refused(tmp_path: Path) -> None:
    columns = rows_of()
    csv(tmp_path, columns, "1.csv")
    csv(tmp_path, {name: columns[name] for name in columns if name != "city"}, "2.csv")
    with pytest.raises(DataError, match=r"2\.csv has other columns than row 0 of .*1\.csv \(city\)"):
        prepared(tmp_path, tmp_path)
    pq.write_table(pa.table({"x": [[1, 2]] * 60, "score": columns["score"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"column 'x' of row 0 of .* is of type list.*--data\.ignore x"):
        prepared(tmp_path, tmp_path / "rows.parquet")


# ── what others write ──
def served(dataset: Dataset) -> list[int]:
    """How many values of each example row an endpoint has never seen: none, or it would refuse itself."""
    schema = TableSchema.of(dataset.details["_fields"])
    rows = dataset.details["_examples"]["rows"]
    columns = {name: pa.array([None if row[name] is None else row[name] if isinstance(row[name], float)
                               else str(row[name])
                               for row in rows]) for name in rows[0]}
    encoded = schema.encode(columns)
    test = split(dataset, "test")
    places = dataset.details["_examples"]["places"]
    for name, values in (("numbers", encoded.numbers), ("categories", encoded.categories)):
        if name in test:
            assert values == pytest.approx(test[name][places], abs=1e-5), name
    return encoded.unseen.tolist()


def test_what_an_endpoint_is_shown_encodes_to_what_was_trained_on_whatever_the_types(tmp_path: Path) -> None:
    from datetime import datetime
    from decimal import Decimal

    count = 60
    table = {"flag": [i % 2 == 0 for i in range(count)],
             "post": [None if i == 7 else 10115.0 + i % 4 for i in range(count)],
             "half": [i % 3 / 2 for i in range(count)],
             "when": pa.array([1_700_000_000_123_456_789 + 10**15 * i for i in range(count)], pa.timestamp("ns")),
             "zone": pa.array([datetime(2024, 1,
                                        1 + i % 28) for i in range(count)]).cast(pa.timestamp("us", "Asia/Tokyo")),
             "hash": [2**60 + i for i in range(count)], "cost": [Decimal(i) / 4 for i in range(count)],
             "kind": pa.array([CITIES[i % 3] for i in range(count)]).dictionary_encode(),
             "score": [float(i % 7) + 0.5 for i in range(count)]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    found = prepared(tmp_path, tmp_path / "rows.parquet", categories="post,half,zone")
    assert fields(found)["post"].values == ("10115", "10116", "10117", "10118")
    assert fields(found)["half"].values == ("0", "0.5", "1") and fields(found)["flag"].values == ("false", "true")
    assert fields(found)["when"].kind == "date" and fields(found)["hash"].kind == "number"
    assert set(served(found)) == {0}
    flags = TableSchema((fields(found)["flag"],)).encode({"flag": pa.array(["True", "false", "FALSE", "no"])})
    assert flags.categories[:, 0].tolist() == [2, 1, 1, 0]


def test_spaces_around_names_and_values_are_not_part_of_them(tmp_path: Path) -> None:
    lines = ["age, city, score"] + [f"{20 + i},  {CITIES[i % 3]}, {i / 4}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    found = prepared(tmp_path, tmp_path / "rows.csv")
    assert {name: field.kind for name, field in fields(found).items()} == {"age": "number", "city": "category"}
    assert fields(found)["city"].values == CITIES and found.details["targets"][0]["name"] == "score"


def test_a_column_whose_name_has_a_comma_can_be_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": rows_of()["size"], "price, EUR": rows_of()["score"]}), tmp_path / "rows.parquet")
    found = prepared(tmp_path, tmp_path / "rows.parquet", label_column="price, EUR")
    assert found.details["targets"][0]["name"] == "price, EUR"


def test_a_column_without_a_value_in_the_first_file_is_of_what_it_holds_in_others(tmp_path: Path) -> None:
    days = pa.array([f"2024-01-{i % 28 + 1:02d}" for i in range(60)]).cast(pa.date32())
    for name, column in (("1", pa.nulls(60)), ("2", days)):
        pq.write_table(pa.table({"day": column, "score": rows_of()["score"]}), tmp_path / f"{name}.parquet")
    assert fields(prepared(tmp_path, tmp_path))["day"].kind == "date"


def test_a_table_in_pieces_is_the_same_table_and_goes_on_where_it_was_stopped(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, data = rows_of(300), tmp_path / "data"
    data.mkdir()
    columns["city"][130] = "Oslo"
    for name, rows, few in (("1", slice(0, 200), 40), ("2", slice(200, 300), 100)):
        pq.write_table(pa.table({key: values[rows] for key, values in columns.items()}), data / f"{name}.parquet",
                       row_group_size=few)
    once = prepared(tmp_path / "once", data)
    with monkeypatch.context() as patch:
        before = pieces_made(patch, Task, 3)
        with pytest.raises(StoppedError):
            prepared(tmp_path / "pieces", data, piece_mb=0.0005)
    assert before == [0, 1, 2]
    after = pieces_made(monkeypatch, Task)
    said: list[str] = []
    found = prepared(tmp_path / "pieces", data, said, piece_mb=0.0005)
    assert "going on with 3 pieces that a preparation has left that was stopped" in said
    assert before + after == list(range(6)), "five parts of the first file, and the second, which is one row group"
    assert found.splits["train"].pieces and not once.splits["train"].pieces[1:]
    assert found.fingerprint == once.fingerprint
    assert found.details["_fields"] == once.details["_fields"] and found.details["_examples"] == once.details[
        "_examples"]
    for name in SPLITS:
        for key, values in split(once, name).items():
            np.testing.assert_array_equal(split(found, name)[key], values)
    columns["size"][250] = float("inf")
    pq.write_table(pa.table({key: values[:200] for key, values in columns.items()}), data / "1.parquet",
                   row_group_size=40)
    pq.write_table(pa.table({key: values[200:] for key, values in columns.items()}), data / "2.parquet")
    with pytest.raises(DataError, match=r"row 50 of .*2\.parquet: column 'size' is inf"):
        prepared(tmp_path / "pieces", data, piece_mb=0.0005)


def test_large_tables_are_not_kept_in_memory(tmp_path: Path) -> None:
    import gc

    wide = pa.table({**{f"x{i}": np.zeros(60_000) + np.arange(60_000) for i in range(40)},
                     "score": np.random.default_rng(0).normal(size=60_000)})
    pq.write_table(wide, tmp_path / "rows.parquet", row_group_size=5_000)
    size, before = wide.nbytes, pa.total_allocated_bytes()
    del wide
    most = 0

    def watch(_: str) -> None:
        nonlocal most
        gc.collect()
        most = max(most, pa.total_allocated_bytes() - before)

    prepare(TableDataConfig(uri=str(tmp_path), label_column="score"), Store.open(str(tmp_path / "storage")), say=watch)
    assert most < size / 4


@pytest.mark.parametrize(("text", "said"), [
    (b",a,score\n0,1,2\n", r"column 1 of .* has no name in the first line \(pandas writes its index so\)"),
    ("a\u00e9,score\n1,2\n".encode("latin-1"), r"is not UTF-8: pass --data.encoding latin-1"),
    (b"a,score\n" + b"".join(b"%d,0.%d\n" % (i, i) for i in range(40)) + b"1,O.5\n",
     r"row 40 of .*: the target's column 'score' is 'O\.5', which is no number, as others are: mend it, or"),
    (b"d,score\n" + b"2024-01-01,0.5\n2024-01-02T00:00:00Z,1.5\n" * 20, None),
    (b"x,score\n" + b"".join(b"%de200,%d.5\n" % (i, i) for i in range(40)), r"column 'x' has values too large")])
def test_more_of_what_cannot_be_read_is_one_message(text: bytes, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(text)
    if said is None:
        assert fields(prepared(tmp_path, tmp_path / "rows.csv"))["d"].kind == "category"
        return
    with pytest.raises(DataError, match=said):
        prepared(tmp_path, tmp_path / "rows.csv")


def test_two_columns_of_one_name_and_a_target_of_dates_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1.0] * 20)] * 3, names=["a", "a", "score"]),
                   tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="there are two columns 'a'"):
        prepared(tmp_path, tmp_path / "rows.parquet")
    days = pa.array([f"2024-01-{i + 1:02d}" for i in range(20)]).cast(pa.date32())
    pq.write_table(pa.table({"a": np.arange(20.0), "score": days}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"is of type date32.*which is no number"):
        prepared(tmp_path, tmp_path / "other.parquet", predict="number")


# ── encoding ──
SCHEMA = TableSchema((Field("n", "number", mean=10, std=2), Field("m", "number", misses=True),
                      Field("c", "category", values=("a", "b")), Field("d", "date", mean=19000, std=100)))


def test_values_become_numbers_and_codes() -> None:
    found = SCHEMA.encode({"n": pa.array([12.0, None]), "m": pa.array(["", "3"]), "c": pa.array(["b", "z"]),
                           "d": pa.array(["2024-01-31", "2024-02-01T12:00:00"])})
    assert SCHEMA.numbers == ("n", "m", "m is missing", "d")
    assert SCHEMA.cardinalities == (3, 8, 13)
    assert found.numbers.tolist() == [[1, 0, 1, pytest.approx(7.53)], [0, 3, 0, pytest.approx(7.545)]]
    assert found.categories.tolist() == [[2, 3, 1], [0, 4, 2]], "Wednesday in January, Thursday in February"
    assert found.unseen.tolist() == [0, 2], "no number where all training rows have one, and a category of none of them"


def test_dates_with_a_zone_are_taken_as_utc_and_types_of_parquet_as_they_are() -> None:
    days = TableSchema((Field("d", "date"),))
    noon = [19753.5]
    for column in (pa.array(["2024-01-31T13:00:00+01:00"]), pa.array(["2024-01-31T12:00:00Z"]),
                   pa.array([1706702400], pa.int64()).cast(pa.timestamp("s", "Europe/Berlin"))):
        assert days.encode({"d": column}).numbers[:, 0].tolist() == noon


@pytest.mark.parametrize(("column", "value", "said"), [
    ("n", "12 kg", "column 'n' is '12 kg', which is no number"), ("n", "inf", "must be finite"),
    ("d", "31.12.2024", "which is no date: write dates as 2024-12-31")])
def test_a_value_that_is_not_of_its_columns_kind_is_named(column: str, value: str, said: str) -> None:
    given = {"n": pa.array(["1", "1"]), "m": pa.array(["", ""]), "c": pa.array(["a", "a"]),
             "d": pa.array(["2024-01-31", "2024-01-31"])}
    with pytest.raises(UnreadableValueError, match=said) as raised:
        SCHEMA.encode(given | {column: pa.array([given[column][0].as_py(), value])})
    assert raised.value.row == 1
