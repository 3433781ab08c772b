"""From text to token ids: the model's own tokenizer, or one trained here, on the training split only.

    characters   each character of the training text is a token      bytes   each byte is
    wordpiece    BERT's, to classify                          bpe     byte-level, to generate: decodes to what it was
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import contextlib
import functools
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.core.auth import expanded
from cluster.core.documents import parse_json
from cluster.core.errors import ConfigError, DataError
from jobs.common.arrays import Array
from jobs.transformer.chat.conversation import ChatTemplateError, Conversation
from jobs.transformer.chat.template import BUILT_IN, ChatTemplate, built_in
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.config import OF_CONVERSATIONS
from jobs.transformer.weights.base import folder_of
from jobs.transformer.weights.pretrained import check_base

if TYPE_CHECKING:  # transformers takes seconds to import
    from tokenizers import Encoding, Tokenizer
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

END = "<|endoftext|>"
_MOST_CHARACTERS = 3000
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]"}


def is_trained_here(config: TransformerConfig) -> bool:
    return config.model.is_preset or config.data.tokenizer != "auto"


def kind_of(config: TransformerConfig) -> str:
    """Which tokenizer a config means."""
    if not is_trained_here(config):
        return config.model.origin
    wanted = config.data.tokenizer
    return wanted if wanted != "auto" else "wordpiece" if config.task == "classify" else "bpe"


def identity_of(config: TransformerConfig) -> list[object]:
    """What a tokenizer is known by before it is made: options, and of a local folder the digest of its files."""
    template = [chat_template(config)] if _has_template(config) else []
    if is_trained_here(config):
        return [kind_of(config), config.data.vocab_size, config.data.lowercase, *template]
    folder = expanded(folder_of(config.model))
    kinds = (".json", ".txt", ".model", *([".jinja"] if template else []))
    files = sorted(p for p in folder.glob("*") if p.suffix in kinds) if folder.is_dir() else []
    known = [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]
    return [config.model.init_digest or config.model.name, known, *template]


def _has_template(config: TransformerConfig) -> bool:
    """Whether it has a chat template, or keeps the tokens of one free."""
    return config.task in OF_CONVERSATIONS or config.model.chat_template is not None


def choose(config: TransformerConfig, training_texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """The tokenizer of a config. Raises: ConfigError, DataError."""
    found = train(config, training_texts) if is_trained_here(config) else pretrained(folder_of(config.model))
    return with_chat_template(found, config) if config.task in OF_CONVERSATIONS else found


def chat_template(config: TransformerConfig) -> str | None:
    """The chat template that a config asks for; None: the tokenizer's own. Raises: ConfigError."""
    wanted = config.model.chat_template or ("chatml" if is_trained_here(config) else None)
    if wanted is None or wanted in BUILT_IN:
        return wanted and built_in(wanted)
    try:
        return expanded(wanted).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--model.chat-template {wanted}: is no file that can be read ({error}), and none of "
                          f"{', '.join(BUILT_IN)}") from error


def _written_by_template(config: TransformerConfig, special: list[str]) -> str:
    """What a template writes around what is said, without special tokens: nothing of a model that refuses it all."""
    template = ChatTemplate(chat_template(config) or "", {"bos_token": END, "eos_token": END}, tuple(special))
    for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user")):
        with contextlib.suppress(ChatTemplateError):
            written = template.render(Conversation(tuple({"role": role, "content": "."} for role in roles)),
                                      add_generation_prompt=True)
            return functools.reduce(lambda text, token: text.replace(token, ""), special, written)
    return ""


def with_chat_template(tokenizer: "PreTrainedTokenizerFast", config: TransformerConfig) -> "PreTrainedTokenizerFast":
    """The tokenizer with the template of its conversations. Raises: ConfigError where there is none, or it is written
    with tokens that the tokenizer does not have."""
    source, wanted = chat_template(config), config.model.chat_template
    try:
        template = ChatTemplate.of(tokenizer, source)
        template.check()
    except ChatTemplateError as error:
        raise ConfigError(
            f"--model.chat-template {wanted}: the template {error}" if source else
            f"the tokenizer of {config.model.origin} has no chat template that can be used: {error}. Pass "
            f"--model.chat-template FILE, or one of {', '.join(BUILT_IN)}") from error
    missing = [token for token in BUILT_IN.get(wanted or "", ())
               if token not in template.specials and not is_trained_here(config)]
    if missing:
        raise ConfigError(f"--model.chat-template {wanted}: the tokenizer of {config.model.origin} does not have its "
                          f"tokens {', '.join(missing)}: pass the template that the model was made with (--task "
                          f"generate with --model.chat-template {wanted} makes one that has them)")
    tokenizer.chat_template = template.source
    return tokenizer


def pretrained(name: str) -> "PreTrainedTokenizerFast":
    """Raises: ConfigError, naming the files that were looked for."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    check_base(name)
    folder = expanded(name)
    try:
        if folder.is_dir() and not any((folder / file).is_file() for file in _VOCABULARIES):
            # transformers 5 would make an empty one
            raise OSError(f"the folder has none of {', '.join(_VOCABULARIES)}")
        found = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name, use_fast=True,
                                              trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--model.name {name}: no tokenizer is to be had from there ({' '.join(str(error).split())[:200]}). Looked "
            "for tokenizer.json and tokenizer_config.json: where there is no network, copy a folder with the model's "
            "files here and pass its path, or pass --data.tokenizer wordpiece with a preset") from error
    if not getattr(found, "is_fast", False):
        raise ConfigError(f"--model.name {name}: its tokenizer has no tokenizer.json, which the rows are made with: "
                          "convert it with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)")
    return found


# ── training one ──
def train(config: TransformerConfig, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """A function of the texts and of the options alone."""
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    kind, classify = kind_of(config), config.task == "classify"
    special = list(_SPECIAL.values()) if classify else [END]
    if _has_template(config):
        special += BUILT_IN.get(config.model.chat_template or "chatml", ())
        texts = itertools.chain([_written_by_template(config, special)], texts)
    made = _TRAINERS[kind](texts, special, config)
    if classify:
        _frame(made)
        return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=config.data.max_length, **_SPECIAL)
    known: dict[str, str] = {"unk_token": _SPECIAL["unk_token"]} if kind == "characters" else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, bos_token=END, **known)


def _frame(made: "Tokenizer") -> None:
    """[CLS] text [SEP]."""
    from tokenizers.processors import TemplateProcessing

    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                             special_tokens=[(name, made.token_to_id(name))
                                                             for name in ("[CLS]", "[SEP]")])


def _characters(texts: Iterable[str], special: list[str], config: TransformerConfig) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    seen = sorted({char for text in texts for char in (text.lower() if config.data.lowercase else text)})
    if not seen:
        raise DataError(f"data {config.data.uri!r} has no training text to make a tokenizer of")
    words = [*special, *([] if "[UNK]" in special else ["[UNK]"]), *seen]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    if config.data.lowercase:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(special)
    return made


def _byte_level(texts: Iterable[str], special: list[str], config: TransformerConfig, vocab_size: int) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    if config.data.lowercase:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special,
                                                        show_progress=False,
                                                        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return made


def _bpe(texts: Iterable[str], special: list[str], config: TransformerConfig) -> "Tokenizer":
    return _byte_level(texts, special, config, max(config.data.vocab_size, 256 + len(special)))


def _bytes(texts: Iterable[str], special: list[str], config: TransformerConfig) -> "Tokenizer":
    return _byte_level((), special, config, 256 + len(special))


def _wordpiece(texts: Iterable[str], special: list[str], config: TransformerConfig) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    heard = list(texts)

    def empty(vocabulary: dict[str, int] | None = None) -> "Tokenizer":
        made = Tokenizer(models.WordPiece(vocabulary or {}, unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer = normalizers.BertNormalizer(lowercase=config.data.lowercase,
                                                     strip_accents=config.data.lowercase)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        return made

    # tokenizers 0.23 numbers the `##x` of its alphabet in the order of a hash table, which also decides ties: so they
    # are named.
    counts = Counter(char for text in heard for char in empty().normalizer.normalize_str(text) if not char.isspace())
    alphabet = sorted(char for char, _ in sorted(counts.items(),
                                                 key=lambda item: (-item[1], item[0]))[:_MOST_CHARACTERS])
    named = [*special, *alphabet, *(f"##{char}" for char in alphabet)]
    learner = empty()
    learner.train_from_iterator(heard, trainers.WordPieceTrainer(
        vocab_size=max(config.data.vocab_size, len(named)), special_tokens=named, show_progress=False))
    made = empty(learner.get_vocab())
    made.add_special_tokens(special)
    return made


_TRAINERS = {"characters": _characters, "bytes": _bytes, "bpe": _bpe, "wordpiece": _wordpiece}


# ── as files, and back ──
def files_of(tokenizer: "PreTrainedTokenizerFast") -> dict[str, bytes]:
    """tokenizer.json and what goes with it, by name; the same bytes for the same tokenizer."""
    with tempfile.TemporaryDirectory(prefix="trainyard-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        kept = {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())
                if p.suffix in (".json", ".txt", ".model", ".jinja")}
    config = parse_json(kept["tokenizer_config.json"])
    config.pop("name_or_path", None)
    return kept | {"tokenizer_config.json": (json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False)
                                             + "\n").encode()}


def from_files(files: Mapping[str, bytes]) -> "PreTrainedTokenizerFast":
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="trainyard-tokenizer-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


# ── encoding ──
def encode_rows(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], max_length: int) -> dict[str, Array]:
    """To classify: {"tokens": (n, max_length) int32, -1 where there is none, "length": (n,) int32},
    with special tokens, cut."""
    backend = backend_of(tokenizer.backend_tokenizer.to_str(), max_length)
    return framed(backend.encode_batch(list(texts)), max_length)


def framed(encoded: "Sequence[Encoding]", max_length: int) -> dict[str, Array]:
    tokens = np.full((len(encoded), max_length), -1, np.int32)
    lengths = np.zeros(len(encoded), np.int32)
    for row, one in enumerate(encoded):
        ids = one.ids
        tokens[row, : len(ids)] = ids
        lengths[row] = len(ids)
    return {"tokens": tokens, "length": lengths}


def backend_of(text: str, max_length: int | None) -> "Tokenizer":
    """The `tokenizers.Tokenizer` of a tokenizer.json, cutting to `max_length` where one is given, and padding nothing.

    A special token that stands in a text is taken as the letters it is written with.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(text)
    backend.no_padding()
    backend.encode_special_tokens = True
    if max_length is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(max_length)
    return backend
