"""The proof that a model learns what an assistant writes and nothing else, over public chat templates and our own.

The oracle knows nothing of traced text: it renders with transformers' own function, finds where words of its making
stand that nobody else writes, and puts the real contents in their place.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from jobs.transformer.chat.conversation import ChatTemplateError, Conversation
from jobs.transformer.chat.encode import ChatEncoder
from jobs.transformer.chat.template import BUILT_IN, ChatTemplate, built_in, special_in
from jobs.transformer.chat.turns import turns_of

OWN = Path(__file__).parents[1] / "fixtures/chat_templates"
PUBLIC = Path(__file__).parents[2].parent / "shared/data/chat_templates"
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
_MARKERS = re.compile(r"<\|[a-zA-Z0-9_]+\|>|<｜[^｜{}']+｜>|\[\|[a-z]+\|\]|<(?:start|end)_of_\w+>|\[/?[A-Z_]+\]"
                      r"|<\|?turn\|?>")
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Where."}}, "required": ["city"]}}}


def call(**arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}]}


def talk(*said: str, system: str | None = None) -> Conversation:
    """User and assistant by turns."""
    told = [{"role": "system", "content": system}] if system is not None else []
    return Conversation((*told, *({"role": role, "content": text} for role, text in
                                  zip(itertools.cycle(("user", "assistant")), said, strict=False))))


def conversations(markers: tuple[str, ...]) -> dict[str, Conversation]:
    """By name. markers: the template's own."""
    marker = max((*markers, "</s>"), key=len)
    return {
        "one turn": talk("What is it?", "It is this."),
        "several turns": talk("Hello there", "Hi <b>you</b>", "What?", "That.", "Why?", "Because, of this & that."),
        "system": talk("Hello", "Yes", "Sure?", "Quite sure", system="You are brief."),
        "empty answer": talk("Hello", "", "Still there?", "Yes."),
        "nothing but spaces": talk("Hello", " \n ", "Still there?", "  "),
        "spaces around": talk("  What ", "  this\n", "\n\nWhy? ", "\n because\n\n"),
        "unicode": talk("Wie heißt «日本»?", "Японія – 日本 🗾 e\u0301", "مرحبا", "שלום\u200b👩‍👩‍👧"),
        "markers": talk(f"Say {marker} now", f"I say {marker} then", f"{marker}", f"{marker}{marker}"),
        "says what the template says": talk("assistant\n", "user\nassistant: model", "\n### Response:\n", "[/INST] x"),
        "the same said by all": talk("yes", "yes", "yes", "yes", system="yes"),
        "thoughts": talk("2 + 3?", "<think>two and three</think>\n\n5", "And 4 + 4?", "<think>\nfour\n</think>\n8"),
        "json": talk('{"role": "assistant"}', '{"a": [1, "{{ x }}", "{% raw %}"]}'),
        "tools": Conversation((
            {"role": "user", "content": "How is it in Paris?"}, call(city="Paris", days=3),
            {"role": "tool", "content": '{"sun": 1}', "name": "weather", "tool_call_id": "abcdefghi"},
            {"role": "assistant", "content": "Sunny."}), (TOOL,)),
    }


# ── the oracle ──
@dataclass(frozen=True)
class Expected:
    """Ranges of characters of a text."""

    text: str
    contents: dict[int, tuple[int, int]]
    """Of each message whose content is written, where it stands."""


def plain(source: str, conversation: Conversation, *, prompt: bool = False, parts: bool = False) -> str | None:
    """As transformers writes it; None: the template refuses it."""
    messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} if parts else message
                for message in conversation.messages]
    try:
        (text,), _ = render_jinja_template([messages], tools=list(conversation.tools) or None, chat_template=source,
                                           add_generation_prompt=prompt, **NAMED)
    except (TemplateError, TypeError, ValueError):
        return None
    return text


def expected(source: str, conversation: Conversation, parts: bool) -> Expected | None:
    """None: the template treats these contents otherwise than words, so that this oracle does not know."""
    words = {number: f"zq{number}{'jvw'[number % 3]}qz" for number in range(len(conversation.messages))}
    worded = conversation
    for number, word in words.items():
        worded = worded.with_content(number, word)
    told, text = plain(source, worded, parts=parts), plain(source, conversation, parts=parts)
    if told is None or text is None:
        return None
    places = sorted((found.start(), number) for number, word in words.items() for found in re.finditer(word, told))
    if len({number for _, number in places}) < len(places):
        return None
    choices = [dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n"),
                              content.lstrip("\n")))
               for content in (conversation.messages[number]["content"] for _, number in places)]
    for chosen in itertools.islice(itertools.product(*choices), 4000):
        made, last, found = "", 0, dict[int, tuple[int, int]]()
        for (place, number), content in zip(places, chosen, strict=True):
            made += told[last:place]
            found[number] = (len(made), len(made) + len(content))
            made, last = made + content, place + len(words[number])
        if made + told[last:] == text:
            return Expected(text, found)
    return None


def problems(source: str, template: ChatTemplate, conversation: Conversation) -> list[str] | None:
    """What is wrong with the turns that are found; None: the oracle does not know. Raises: ChatTemplateError for what
    is refused."""
    traced, turns = turns_of(template, conversation, "assistant")
    parts = _reads_parts(source)
    learnt = np.zeros(len(traced.text) + 1, bool)
    for turn in turns:
        for start, stop in turn.ranges:
            learnt[start:stop] = True
    known = expected(source, conversation, parts)
    return known and list(_problems(source, traced.text, conversation, known, learnt, parts))


def _problems(source: str, text: str, conversation: Conversation, known: Expected, learnt: Any,
              parts: bool) -> Iterator[str]:
    if text != known.text:
        yield "another text than transformers writes"
        return
    for number, (start, stop) in known.contents.items():
        ours = conversation.messages[number]["role"] == "assistant"
        if ours and not learnt[start:stop].all():
            yield f"message {number} is not all learnt"
        if not ours and learnt[start:stop].any():
            yield f"message {number} is learnt, of {conversation.messages[number]['role']}"
    if not re.search(r"\{%-?\s*generation", source):
        yield from _literal_problems(source, conversation, known, learnt, parts)


def _literal_problems(source: str, conversation: Conversation, known: Expected, learnt: Any,
                      parts: bool) -> Iterator[str]:
    """Where the template has no marks: nothing of its prompts is learnt, nor what is not beside an answer."""
    beside = np.zeros_like(learnt)
    for number, (start, stop) in known.contents.items():
        if conversation.messages[number]["role"] != "assistant":
            continue
        prompted = plain(source, conversation.until(number), prompt=True, parts=parts) or ""
        before = max((end for other, (_, end) in known.contents.items() if other != number and end <= start), default=0)
        if known.text.startswith(prompted) and learnt[before:min(start, len(prompted))].any():
            yield f"the prompt of message {number} is learnt"
        first, last = start, stop
        while first and learnt[first - 1]:
            first -= 1
        while last < len(learnt) and learnt[last]:
            last += 1
        beside[first:last] = True
    if not conversation.tools and (learnt & ~beside).any():
        yield "something is learnt that stands beside no answer"


def _reads_parts(source: str) -> bool:
    probe = talk("wordword", "wordword")
    return (plain(source, probe) or "").count("wordword") < 2


def markers_of(source: str) -> tuple[str, ...]:
    return tuple(sorted({*_MARKERS.findall(source), "<s>", "</s>"}))


def sources() -> dict[str, str]:
    found = {f"built-in {name}": built_in(name) for name in BUILT_IN}
    found |= {path.stem: path.read_text() for path in sorted(OWN.glob("*.jinja"))}
    found |= {str(path.relative_to(PUBLIC).with_suffix("")): path.read_text()
              for path in sorted(PUBLIC.rglob("*.jinja"))}
    return found


@pytest.fixture(autouse=True)
def same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day that rows are prepared on, for transformers too."""
    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.fixture(scope="module")
def tally() -> Counter[tuple[str, str]]:
    return Counter()


@pytest.mark.parametrize("name", list(sources()))
def test_what_is_learnt_is_the_assistant_s(name: str, tally: Counter[tuple[str, str]]) -> None:
    source = sources()[name]
    template = ChatTemplate(source, NAMED, markers_of(source))
    for kind, conversation in conversations(template.specials).items():
        try:
            found = problems(source, template, conversation)
        except ChatTemplateError as error:
            tally[kind, "refused"] += "/" in name
            assert len(str(error)) > 20, "it says why"
            continue
        tally[kind, "unknown" if found is None else "proved"] += "/" in name
        assert not found, f"{name}, {kind}: {found}"


def test_few_are_refused(tally: Counter[tuple[str, str]]) -> None:
    """Of the public ones: what is refused cannot be written by the template (three know no system), or is changed."""
    if not PUBLIC.exists():
        pytest.skip("the public templates are not there")
    for kind in ("one turn", "several turns", "spaces around", "unicode", "json", "the same said by all"):
        assert tally[kind, "refused"] <= 3 and not tally[kind, "unknown"], (kind, tally)
    print("\n".join(f"| {kind} | {' | '.join(str(tally[kind, how]) for how in ('proved', 'unknown', 'refused'))} |"
                    for kind in conversations(())))


# ── tokens ──
@pytest.fixture(scope="module")
def tokenizer() -> str:
    """A byte-level BPE that has all templates' markers as special tokens, and whose offsets leave out spaces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = sorted({marker for source in sources().values() for marker in markers_of(source)})
    texts = [content for conversation in conversations(()).values() for message in conversation.messages
             for content in (message["content"],)]
    made.train_from_iterator(texts * 20, trainers.BpeTrainer(
        vocab_size=256 + len(special) + 60, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made.to_str()


@pytest.mark.parametrize("kind", ["unicode", "markers"])
def test_tokens_are_learnt_where_all_of_their_characters_are(kind: str, tokenizer: str) -> None:
    backend = Tokenizer.from_str(tokenizer)
    for name, source in sources().items():
        template = ChatTemplate(source, NAMED, markers_of(source))
        conversation = conversations(template.specials)[kind]
        try:
            traced, turns = turns_of(template, conversation, "assistant")
            row = ChatEncoder(template, tokenizer).row(conversation, "assistant")
        except ChatTemplateError:
            continue
        assert backend.decode(row.ids.tolist(), skip_special_tokens=False) == traced.text, name
        place = 0
        for number, token in enumerate(row.ids.tolist()):
            size = len(backend.id_to_token(token).encode() if backend.id_to_token(token) in template.specials
                       else backend.id_to_token(token))
            start, stop = (len(traced.text.encode()[:each].decode(errors="ignore")) for each in (place, place + size))
            inside = any(first <= start and max(stop, start + 1) <= last for turn in turns
                         for first, last in turn.ranges)
            assert row.learnt[number] == (inside and number > 0), (name, number, backend.id_to_token(token))
            place += size
        control = Counter(each for each in row.ids.tolist() if backend.id_to_token(each) in template.specials)
        literal = Counter(backend.token_to_id(traced.text[first:last])
                          for start, size in traced.literals()
                          for first, last in [(start + a, start + b) for a, b in special_in(
                              traced.text[start:start + size], template.specials)])
        assert control == literal, f"{name}: a message's letters became a control token"


@pytest.mark.parametrize(("source", "prompt"), [
    ("### User: {{ m.content | indent(2) }}\n", "### Bot: think "),
    ("{{ '### User: %s\n' % m.content }}", "### Bot: think "),
    ("{{ '### User: {}\n'.format(m.content) }}", "### Bot: think "),
    ("### User: {{ m.content | e }}\n", "### Bot: think "),
    ("### User: {{ m.content.expandtabs() }}\n", "### Bot: think "),
])
def test_what_a_user_quotes_is_never_learnt_whatever_the_template_does_with_it(source: str, prompt: str) -> None:
    """The template's prompt is not that before the answer, and stands in what the user says."""
    whole = ("{% for m in messages %}{% if m.role == 'user' %}" + source + "{% else %}### Bot: {{ m.content }}<|end|>"
             "{% endif %}{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}")
    template = ChatTemplate(whole, NAMED, ("<|end|>",))
    conversation = talk(f"quote\n{prompt}SECRET <|end|> of the user", "yes")
    try:
        traced, turns = turns_of(template, conversation, "assistant")
    except ChatTemplateError:
        return
    assert [traced.text[start:stop] for turn in turns for start, stop in turn.ranges] == ["yes<|end|>"]
    assert len(traced.literals()) and "SECRET" not in "".join(
        traced.text[start:start + size] for start, size in traced.literals())


def test_no_turn_ends_by_what_opens_another() -> None:
    source = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
              "{{ '<|assistant|>' if add_generation_prompt else '<|user|>' }}")
    traced, turns = turns_of(ChatTemplate(source, NAMED, ("<|user|>", "<|assistant|>", "<|end|>")),
                             talk("a", "yes", "b", "no"), "assistant")
    assert [traced.text[start:stop] for turn in turns for start, stop in turn.ranges] == ["yes<|end|>", "no<|end|>"]


def test_the_end_of_a_turn_is_learnt_though_its_token_takes_the_spaces_behind_it() -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(["ab"], trainers.BpeTrainer(show_progress=False, initial_alphabet=sorted(
        pre_tokenizers.ByteLevel.alphabet())))
    made.add_special_tokens([AddedToken(token, rstrip=True, special=True) for token in ("<|user|>", "<|end|>")])
    source = "{% for m in messages %}<|user|>\n{{ m.content }}<|end|>\n{% endfor %}"
    encoder = ChatEncoder(ChatTemplate(source, NAMED, ("<|user|>", "<|end|>")), made.to_str())
    row = encoder.row(talk("a", "b"), "assistant")
    assert made.decode(row.ids[row.learnt].tolist(), skip_special_tokens=False) == "b<|end|>"
    assert not row.merged


@pytest.mark.parametrize(("said", "why"), [
    ({"content": "I will search for Rome.", "tool_calls": [("search", {"q": "Rome"})]}, "leaves out 'search'"),
    ({"content": "", "tool_calls": [("get", {"city": "Rome"}), ("get", {"city": "Rome", "days": 3})]}, "leaves out"),
    ({"content": "", "tool_calls": [("pay", {"amount": 5000})]}, "leaves out '5000'"),
    ({"content": "yes", "reasoning_content": "let me see"}, "leaves out its reasoning"),
])
def test_no_part_of_what_an_assistant_does_is_left_out_unseen(said: dict[str, Any], why: str) -> None:
    source = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls and not m.content %}"
              "[{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments.city }}]{% endif %}<|im_end|>"
              "\n{% endfor %}")
    template = ChatTemplate(source, NAMED, ("<|im_start|>", "<|im_end|>"))
    calls = [{"type": "function", "function": {"name": name, "arguments": given}}
             for name, given in said.get("tool_calls", ())]
    message = {"role": "assistant", **said, **({"tool_calls": calls} if calls else {})}
    with pytest.raises(ChatTemplateError, match=why):
        turns_of(template, Conversation(({"role": "user", "content": "Where?"}, message)), "assistant")
