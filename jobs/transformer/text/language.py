"""Which language a text is in, by the letters that follow each other in it (py3langid, whose model comes with it)."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence

from jobs.common.config import require
from jobs.common.training.job import require_package
from jobs.transformer.text.features import MOST_CHARACTERS


def language_of(text: str) -> str:
    """A code of ISO 639, such as `en`. Of a few words it is often wrong."""
    from py3langid import classify

    return classify(text[:MOST_CHARACTERS])[0]


def check_languages(wanted: Sequence[str]) -> None:
    """Raises: ConfigError for what is no language, or not known."""
    require_package("py3langid", "transformer")
    from py3langid import rank

    known = sorted(language for language, _ in rank(""))
    for language in wanted:
        require(language in known, "data.language", language, f"give of these, joined by commas: {', '.join(known)}")
