"""Who made which version of a model the champion, when and why: a tag of the registered model, as JSON."""

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cluster.core.auth import user_name
from cluster.core.documents import DocumentError, parse_json
from cluster.core.errors import RegistryError
from jobs.common.provenance import without_secrets

PROMOTIONS = "promotions"
_MOST_TAG, _MOST_WHY = 4900, 400
"""Characters that MLflow keeps of a tag, for which the oldest go, and those of one reason."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """That a version was made the champion."""

    version: str
    before: str | None
    """The champion before."""
    at: float
    """Seconds since 1970."""
    by: str
    """Whoever did it: user and host."""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class _Tag:
    promotions: list[Promotion]


def recorded(tags: Mapping[str, str]) -> list[Promotion]:
    """What the tags of a registered model say, the newest last. Raises: RegistryError if the tag is damaged."""
    try:
        return parse_json(tags[PROMOTIONS], _Tag).promotions if PROMOTIONS in tags else []
    except DocumentError as error:
        raise RegistryError(f"the tag {PROMOTIONS!r} of a registered model is damaged ({error}): mend or delete "
                            "it") from error


def with_another(tags: Mapping[str, str], version: str, before: str | None, why: str) -> str:
    """The tag's text with one more promotion, made now by whoever runs this process."""
    made = Promotion(version=version, before=before, at=round(time.time()), by=f"{user_name()}@{platform.node()}",
                     why=str(without_secrets(why))[:_MOST_WHY])
    promotions = [*recorded(tags), made]
    while len(text := json.dumps(asdict(_Tag(promotions=promotions)))) > _MOST_TAG and len(promotions) > 1:
        promotions = promotions[1:]
    return text
