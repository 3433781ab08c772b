"""How good answers are: against the ones that held-out conversations have, and beside those of a plain look-up."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.core.documents import JsonObject
from jobs.transformer.chat.conversation import Conversation
from jobs.transformer.chat.rows import from_text

_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Asked:
    """What an assistant is asked in a conversation that was kept from training, and what it says there."""

    before: Conversation
    """The messages up to the last answer."""
    reference: str

    @property
    def question(self) -> str:
        """All that is said up to the answer."""
        return "\n".join(message["content"] for message in self.before.messages)


def asked_in(texts: Iterable[str]) -> list[Asked]:
    """The last answer of each conversation that ends with one of words alone."""
    found: list[Asked] = []
    for text in texts:
        conversation = from_text(text)
        last: JsonObject = conversation.messages[-1]
        if last["role"] == "assistant" and last["content"].strip() and not last.get("tool_calls") and (
                len(conversation.messages) > 1):
            found.append(Asked(conversation.until(len(conversation.messages) - 1), last["content"]))
    return found


def is_right(answer: str, reference: str) -> bool:
    """Whether both are the same, but for spaces at their ends and how many there are between words."""
    return answer.split() == reference.split()


def token_f1(answer: str, reference: str) -> float:
    """Of the words of both in small letters, how many they have in common: twice that by how many there are together
    (Rajpurkar et al. 2016)."""
    ours, theirs = (Counter(_WORDS.findall(text.lower())) for text in (answer, reference))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else float(is_right(answer, reference))


def looked_up(known: Sequence[Asked], asked: Sequence[Asked]) -> list[str]:
    """The answers to the known questions that are most like those asked, by the TF-IDF of their words and pairs of
    words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    rows = weights.fit_transform([each.question for each in known])
    alike = weights.transform([each.question for each in asked]) @ rows.T
    return [known[int(place)].reference for place in np.asarray(alike.argmax(axis=1)).ravel()]
