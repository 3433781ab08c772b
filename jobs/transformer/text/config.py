"""The config's options of text: where it comes from, how it is cleaned and cut into tokens, and how it is split."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jobs.common.config import require
from jobs.common.data.csv_config import CsvDataConfig
from jobs.transformer.chat.conversation import FormName
from jobs.transformer.text.text_rule import Case, ControlCharacters, Normalise, TextRule

Task = Literal["classify", "generate", "chat", "prefer"]
OF_CONVERSATIONS: tuple[Task, ...] = ("chat", "prefer")


@dataclass(frozen=True, kw_only=True)
class TextDataConfig(CsvDataConfig):
    """Where the text comes from, how it is cut into tokens, and how it is split and read."""

    uri: str = "auto"
    """A path or URI (see the job's README), or what is embedded: `languages` to classify, `stdlib` to generate,
    `questions` to chat; `auto`: the one of the task, of which `prefer` has none."""
    form: FormName = "auto"
    """Of conversations: how a row keeps one. `messages`: OpenAI's; `prompt`: with completion; `sharegpt`:
    conversations; `alpaca`: instruction, input, output; `preference`: chosen and rejected, with or without prompt;
    `auto`: by the task and the columns."""
    too_long: Literal["cut", "skip"] = "cut"
    """What becomes of a conversation of more than `max_length` tokens; a pair is refused where it would be cut."""
    text_column: str = "text"
    """Name of the column with the text (Parquet, CSV, JSON Lines)."""
    text_columns_join: tuple[str, ...] = ()
    """More columns whose text follows, each after a space."""
    max_length: int = 128
    """Tokens of a row: a longer text is cut when classifying, packed into rows of so many when generating."""
    tokenizer: Literal["auto", "characters", "bytes", "wordpiece", "bpe"] = "auto"
    """`auto`: the model's own, or one trained on the training split: `wordpiece` to classify, `bpe` to generate."""
    vocab_size: int = 8192
    """Most tokens of a tokenizer that is trained here."""
    lowercase: bool = False
    """Whether a tokenizer that is trained here ignores case."""
    max_train_rows: int | None = None
    """Uses so many training rows only, chosen by `data.split_seed`."""
    normalise: Normalise = "keep"
    """Brings texts into Unicode's normalisation form, in which what looks the same is the same: `nfkc` also makes ﬁ fi,
    and ² 2."""
    control_characters: ControlCharacters = "keep"
    """`drop` takes them out of texts, but for line breaks and tabs."""
    case: Case = "keep"
    """`lower` makes all letters of texts small, whatever the tokenizer does."""
    shortest: int | None = None
    """Characters of a cleaned text: rows with fewer are left out."""
    longest: int | None = None
    """Characters of a cleaned text: rows with more are left out."""
    language: str | None = None
    """Codes of ISO 639, such as `en` or `en,de`: rows that are taken to be in another language are left out."""
    near_duplicates: Literal["ignore", "report", "drop"] = "ignore"
    """What becomes of rows that are nearly the same as another one, in any split: `report` counts them, `drop` leaves
    out all but the first of those that are alike."""
    near_duplicates_from: float | None = None
    """The share of all runs of five words of two texts that both have, from which on they are; 0.8 by default."""
    length_group_steps: int = 64
    """Steps whose rows are sorted by length among each other, so that a batch holds little padding; 1: none."""

    decisive_choices: ClassVar[tuple[str, ...]] = (*CsvDataConfig.decisive_choices, "normalise", "control_characters",
                                                   "case", "shortest", "longest", "language",
                                                   "near_duplicates", "near_duplicates_from",
                                                   "form", "too_long")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_length >= 8, "data.max_length", self.max_length, "must be at least 8 tokens")
        require(self.vocab_size >= 64, "data.vocab_size", self.vocab_size, "must be at least 64")
        require(self.length_group_steps >= 1, "data.length_group_steps", self.length_group_steps, "must be at least 1")
        require(self.max_train_rows is None or self.max_train_rows >= 1, "data.max_train_rows", self.max_train_rows,
                "must be at least 1")
        require(self.shortest is None or self.shortest >= 1, "data.shortest", self.shortest,
                "must be at least 1 character")
        require(self.longest is None or self.longest >= (self.shortest or 1), "data.longest", self.longest,
                "must be at least 1 character, and at least --data.shortest")
        require(self.near_duplicates_from is None or 0.5 <= self.near_duplicates_from <= 1, "data.near_duplicates_from",
                self.near_duplicates_from, "must be from 0.5 to 1")
        require(self.near_duplicates_from is None or self.near_duplicates != "ignore", "data.near_duplicates_from",
                self.near_duplicates_from, "needs --data.near-duplicates report or drop")

    @property
    def near_share(self) -> float:
        """`near_duplicates_from` that holds."""
        return 0.8 if self.near_duplicates_from is None else self.near_duplicates_from

    @property
    def rule(self) -> TextRule:
        """How texts are cleaned."""
        return TextRule(normalise=self.normalise, control_characters=self.control_characters, case=self.case)

    @property
    def cleans(self) -> str | None:
        """An option by which texts are changed, if there is one."""
        return next((name for name in ("normalise", "control_characters", "case") if getattr(self, name) != "keep"),
                    None)

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that are wanted; none: all are."""
        return tuple(code.strip() for code in (self.language or "").split(",") if code.strip())

    @property
    def chooses(self) -> str | None:
        """An option by which rows are left out for what they are, if there is one."""
        return next((name for name in ("shortest", "longest", "language") if getattr(self, name) is not None), None)
