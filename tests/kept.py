"""What users of an earlier version keep (runs, checkpoints, data, artifacts, a search, a registry), copied for a test.

`fixtures/e4d30b9/make.sh` says how it was made.
It lay in another folder then, which only the registry and saved configs name.
"""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures/e4d30b9"
MADE_IN = "/srv/trainyard"
SEARCH_KEY = "0123456789abcdef0123456789abcdef"


def artifact(name: str) -> Path:
    """The artifact that a run of that version ended with: `mlp`, `cnn`, `transformer` or `lm`."""
    return FIXTURES / "storage" / name / "artifact"


def storage(target: Path) -> Path:
    """A copy of the whole storage, whose runs may go on."""
    shutil.copytree(FIXTURES / "storage", target)
    with closing(sqlite3.connect(target / "mlflow.db")) as database, database:
        for table, column in _texts(database):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (MADE_IN, str(target)))
    return target


def _texts(database: sqlite3.Connection) -> list[tuple[str, str]]:
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [(f'"{table}"', f'"{row[1]}"')
            for table in tables for row in database.execute(f'PRAGMA table_info("{table}")')
            if row[2].upper().startswith(("VARCHAR", "TEXT"))]
