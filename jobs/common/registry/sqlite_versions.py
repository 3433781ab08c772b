"""The versions in an SQLite registry, read without MLflow, whose import alone takes 2 to 4 s of CPU.

It reads four of MLflow's tables; a test compares what it finds with what MLflow's own client finds.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from jobs.common.registry.registry import ModelVersion

_VERSIONS = """
SELECT name, version, run_id FROM model_versions
WHERE workspace = 'default' AND current_stage <> 'Deleted_Internal' AND name = ifnull(?, name) AND name NOT IN (
    SELECT name FROM registered_model_tags
    WHERE workspace = 'default' AND key = 'mlflow.prompt.is_prompt' AND value = 'true')
ORDER BY name, version DESC
"""
_TAGS = "SELECT key, value FROM model_version_tags WHERE workspace = 'default' AND name = ? AND version = ?"
_ALIASES = ("SELECT alias FROM registered_model_aliases WHERE workspace = 'default' AND name = ? AND version = ? ORDER "
            "BY alias")


def read_versions(database: Path, name: str | None) -> list[ModelVersion] | None:
    """Returns what `MlflowRegistry.versions` does;
    None where MLflow has to be asked, as the tables are not those known here."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(_VERSIONS, (name,)).fetchall()
            return [_version(connection, *row) for row in found]
    except sqlite3.Error:
        return None


def _version(connection: sqlite3.Connection, name: str, number: int, run_id: str) -> ModelVersion:
    tags = dict(connection.execute(_TAGS, (name, number)))
    aliases = tuple(alias for (alias,) in connection.execute(_ALIASES, (name, number)))
    return ModelVersion(name=name, version=str(number), aliases=aliases, run_id=run_id, tags=tags)
