"""Where the data of a run comes from, and how it is split and read: the group `data` of every config."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from jobs.common.config_groups.fields import OnResume, require

Layout = Literal["auto", "splits", "one"]
ClassFolder = Literal["auto", "outer", "inner"]
_MANY_PIECES, _SMALL_PIECE = 16, 8e6


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data comes from, and how it is split and read."""

    uri: str = "digits"
    """`digits` (embedded), or a path or URI: see the job's README for the formats."""
    val_uri: str | None = None
    """Validation data, where the source has a split of its own; by default it is split off."""
    test_uri: str | None = None
    """Test data, where the source has a split of its own; by default it is split off."""
    label_column: str = "label"
    """Name of the column with the class."""
    label_names: str | None = None
    """What classes are called, by what the column has: `0=negative,1=positive`."""
    layout: Layout = "auto"
    """What it means that files or folders are named after splits: `splits` they are these, and others are left out;
    `one` nothing, all rows are split here; `auto` as `splits` if all are, refused if only some are."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What becomes of rows with the content of an earlier one of their split."""
    leaks: Literal["report", "drop", "refuse"] = "report"
    """What becomes of rows whose content is in another split, too: `drop` takes them out of training, or validation."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What becomes of pictures, and of rows of text, that cannot be read: `skip` leaves them out and lists them."""
    bad_rows_most: float = 0.01
    """With `skip`: the largest share of the rows that may be left out so."""
    piece_mb: float = 64.0
    """Of a source's files, in 10^6 bytes: what one task prepares at most; of a small source a sixteenth, or 8 MB."""
    check: bool = False
    """Prepares the data, says what it found, keeps nothing of it, and begins no run."""
    split_seed: int = 0
    """Seeds the split into training, validation and test rows; nothing else does."""
    shuffle_window_rows: int = 65536
    """Rows of a shard that are shuffled together, which bounds a worker's memory."""
    cache_dir: str | None = None
    """Node-local folder for data in use; by default under the system's temporary folder."""
    cache_gb: float = 10.0
    """Most disk, in 10^9 bytes, that the node-local cache may take."""

    def __post_init__(self) -> None:
        require(bool(self.uri), "data.uri", repr(self.uri), "name a path, a URI or `digits`")
        require(self.split_seed >= 0, "data.split_seed", self.split_seed, "must be 0 or more")
        require(self.piece_mb > 0, "data.piece_mb", self.piece_mb, "must be more than 0")
        require(0 <= self.bad_rows_most < 1, "data.bad_rows_most", self.bad_rows_most, "must be at least 0 and below 1")
        require(self.shuffle_window_rows >= 1, "data.shuffle_window_rows", self.shuffle_window_rows,
                "must be at least 1")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "must be more than 0")

    on_resume: ClassVar[dict[str, OnResume]] = {
        "bad_rows_most": "free", "piece_mb": "free", "check": "free", "cache_dir": "free", "cache_gb": "free"}
    decisive_choices: ClassVar[tuple[str, ...]] = ("layout", "duplicates", "leaks", "bad_rows", "label_names")
    """Fields that decide what is prepared, where they are not as by default."""

    @property
    def choices(self) -> list[str]:
        """What was chosen of these, for the key of prepared data."""
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        chosen = {name: getattr(self, name) for name in self.decisive_choices}
        return [f"{name} {value}" for name, value in chosen.items() if value != defaults[name]]

    def piece_bytes(self, total: int) -> int:
        """Of a source of so many bytes, what a piece has at most: such that there is work for a cluster."""
        return max(1, int(min(self.piece_mb * 1e6, max(_SMALL_PIECE, total / _MANY_PIECES))))
