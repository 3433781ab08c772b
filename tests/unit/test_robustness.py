"""Changed texts: the same for the same key, never blank, about as wrong as asked,
and drawn against the untouched rows."""

import re
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.common.report.html import render
from jobs.common.report.robustness import section
from jobs.transformer.text.robustness import ABOUT, PERTURBATIONS, lost_accents, lost_case, shortened, typos

SENTENCE = "The quick brown fox jumps over the lazy dog while five boxing wizards watch from a distance. "
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. "
EVIL = "<script>alert('x')</script>\"&"
ANY_TEXT = st.text(max_size=60)


def distance(a: str, b: str) -> int:
    """Edits from one to the other; two letters that change places are one (Damerau 1964, of adjacent letters)."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for k in range(1, len(b) + 1):
            table[i, k] = min(table[i - 1, k] + 1, table[i, k - 1] + 1, table[i - 1, k - 1] + (a[i - 1] != b[k - 1]))
            if i > 1 and k > 1 and a[i - 1] == b[k - 2] and a[i - 2] == b[k - 1]:
                table[i, k] = min(table[i, k], table[i - 2, k - 2] + 1)
    return int(table[-1, -1])


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


# ── every change ──
@pytest.mark.parametrize("name", PERTURBATIONS)
@given(text=ANY_TEXT, key=st.tuples(st.integers(0, 2**63), st.integers(0, 2**40)))
def test_a_change_is_a_function_of_text_and_key_and_leaves_no_text_blank(name: str, text: str,
                                                                         key: tuple[int, int]) -> None:
    changed = PERTURBATIONS[name](text, key)
    assert changed == PERTURBATIONS[name](text, key)
    assert bool(changed.strip()) == bool(text.strip())


def test_each_change_is_explained() -> None:
    assert set(ABOUT) == set(PERTURBATIONS)


# ── typos ──
@pytest.mark.parametrize("text", [SENTENCE, RUSSIAN, SENTENCE.upper()])
def test_about_a_tenth_of_the_letters_are_mistyped(text: str) -> None:
    rates = [distance(text, typos(text, (0, row))) / letters(text) for row in range(40)]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.01)
    assert max(rates) < 0.15 and min(rates) > 0.05


def test_short_texts_are_spared_as_often_as_a_tenth_asks_for() -> None:
    wrong = sum(typos("abcd", (0, row)) != "abcd" for row in range(2000))
    assert wrong / 2000 == pytest.approx(0.4, abs=0.05)


def test_typos_are_of_all_four_kinds() -> None:
    seen = {typos("stamp", (0, row)) for row in range(3000)}
    assert {"tsamp", "samp", "sttamp", "sgamp", "stanp"} <= seen
    assert all(distance("stamp", other) <= 1 for other in seen)


def test_seed_and_row_give_other_typos_in_the_same_text() -> None:
    made = [typos(SENTENCE * 3, key) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(made)) == 4
    golden = "The quick brown fxo jumps"
    assert len(typos(golden, (0, 7))) in range(20, 30)


def test_only_letters_are_mistyped_and_their_case_is_kept() -> None:
    assert typos("123 456, 789! ¿?" * 20, (0, 0)) == "123 456, 789! ¿?" * 20
    assert typos("ABCDEFGH" * 40, (0, 0)).isupper()
    assert re.sub(r"\w", "", typos(SENTENCE, (0, 3))) == re.sub(r"\w", "", SENTENCE)


def test_a_neighbour_is_near_on_the_keyboard_and_scripts_without_one_are_doubled() -> None:
    ones = {typos("й", (0, row)) for row in range(500)}
    assert ones == {"й", "йй", "ц", "ф"}
    assert {typos("字", (0, row)) for row in range(500)} == {"字", "字字"}
    assert {typos("É", (0, row)) for row in range(3000)} == {"É", "ÉÉ", "W", "R", "S", "D"}


# ── the others ──
def test_case_is_lost() -> None:
    assert lost_case("Straße NACH Łódź", (0, 0)) == "straße nach łódź"


@pytest.mark.parametrize(("text", "bare"), [
    ("Straße nach Łódź, Ærøskøbing, naïve café", "Strasse nach Lodz, Aeroskobing, naive cafe"),
    ("Đặng Þór İstanbul ığdır", "Dang Thor Istanbul igdir"),
    ("ещё й ά ﬁ", "еще и α fi"),
    ("한국어 が हिन्दी ไม่ שָׁלוֹם", "한국어 が हिन्दी ไม่ שָׁלוֹם"),
    ("plain", "plain"),
])
def test_accents_are_lost_and_nothing_else(text: str, bare: str) -> None:
    assert lost_accents(text, (0, 0)) == bare
    assert lost_accents(unicodedata.normalize("NFD", text), (0, 0)) == bare


@given(text=ANY_TEXT)
def test_accents_cannot_be_lost_twice(text: str) -> None:
    once = lost_accents(text, (0, 0))
    assert lost_accents(once, (0, 0)) == once


@pytest.mark.parametrize(("text", "short"), [
    ("one two three four", "one two"), ("one two three", "one two"), ("one  two", "one"), ("  one two ", "  one"),
    ("word", "wo"), ("words", "wor"), ("a", "a"), ("長い文章です", "長い文"), (" \n", " \n"), ("", ""),
])
def test_the_first_half_remains(text: str, short: str) -> None:
    assert shortened(text, (0, 0)) == short


# ── the report ──
def measured(accuracy: float, spread: float = 0.02) -> SimpleNamespace:
    return SimpleNamespace(accuracy=accuracy, accuracy_low=max(0, accuracy - spread),
                           accuracy_high=min(1, accuracy + spread))


RESULTS = {"untouched": measured(0.95), "noise": measured(0.8), "blur": measured(0.96)}


def test_the_section_tells_accuracy_interval_and_what_was_lost() -> None:
    html = section(RESULTS, about={"noise": "gaussian, a tenth of the range", "other": "not measured"}).html
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", html)
    assert cells == ["change", "accuracy", "95% interval", "points", "untouched", "95.00%", "93.00% – 97.00%", "–",
                     "noise", "80.00%", "78.00% – 82.00%", "-15.00", "blur", "96.00%", "94.00% – 98.00%", "+1.00"]
    assert "noise: gaussian, a tenth of the range." in html and "not measured" not in html


def test_bars_are_as_long_as_the_accuracy_and_whiskers_span_the_interval() -> None:
    html = section(RESULTS).html
    widths = [float(width) for width in re.findall(r'<rect[^>]*width="([\d.]+)"', html)]
    np.testing.assert_allclose(np.array(widths) / widths[0], np.array([0.95, 0.8, 0.96]) / 0.95, rtol=1e-3)
    low, high = map(float, re.findall(r'd="M([\d.]+) \d+H([\d.]+)', html)[1])
    assert (high - low) / widths[1] == pytest.approx(0.04 / 0.8, rel=1e-2)


def test_a_name_stays_text() -> None:
    evil = section({EVIL: measured(1.0), "b": measured(0)}, about={EVIL: EVIL}, split=EVIL, title=EVIL)
    document = render("page.html", title="t", sections=[evil])
    assert "<script" not in document and document.count("&lt;script&gt;") >= 5


def test_no_results_are_refused() -> None:
    with pytest.raises(ValueError, match="untouched rows first"):
        section({})
