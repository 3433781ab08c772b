"""A dataset of the Hub is read at one commit: its revisions are resolved once, when a run or a search begins.

    config, commits = at_commits(config, record.get("commits", {}), say)

The config names commits from then on; who goes on with the run later resolves nothing that is recorded.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from cluster.core.hub import HubPlace, is_hub, pin
from jobs.common.config import Config
from jobs.common.data.prepared import Say

URIS = ("uri", "val_uri", "test_uri")
Commits = Mapping[str, str]
"""By the URI of a dataset at a revision, `hf://datasets/OWNER/NAME@main`."""
C = TypeVar("C", bound=Config)


def at_commits(config: C, known: Commits, say: Say | None = None) -> tuple[C, dict[str, str]]:
    """The config with each URI of the Hub at a commit, and the commits of all revisions that it names. known: those
    that were resolved before. Raises: DataError; UserError where the Hub does not answer."""
    commits, uris = dict(known), dict[str, str]()
    for name in URIS:
        uri: str | None = getattr(config.data, name)
        if uri is not None and is_hub(uri):
            uris[name] = pin(uri, commits)
            root, commit = HubPlace.of(uri).root, HubPlace.of(uris[name]).revision
            if say and uris[name] != uri and root not in commits:
                say(f"{root} is at commit {commit}, which is read from now on")
            commits |= {root: commit} if uris[name] != uri else {}
    return (replace(config, data=replace(config.data, **uris)) if uris else config), commits


def at_known_commits(config: C, known: Commits) -> C:
    """The same of what was resolved before; another URI stays as it is."""
    places = {name: getattr(config.data, name) for name in URIS}
    uris = {name: pin(uri, known) for name, uri in places.items()
            if uri is not None and is_hub(uri) and HubPlace.of(uri).root in known}
    return replace(config, data=replace(config.data, **uris)) if uris else config
