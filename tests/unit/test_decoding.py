"""Texts that are continued together: as transformers' own `generate` continues each of them, and as alone."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.core.errors import ArtifactError
from jobs.transformer import decoding
from jobs.transformer.decoding import Decoder, Row, chosen
from jobs.transformer.generation.cache import KeyValueCache
from jobs.transformer.generation.prefix_cache import BLOCK, PrefixCache
from jobs.transformer.model import LanguageModel
from tests.unit.language_model import POSITIONS, language_model, one_thread

PROMPTS = ["def read(path):", "x", "for each in range(10):\n    print(each)\n" * 3, "€ and é"]


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with one_thread():
        yield language_model()


def row(seed: int = 0, temperature: float = 1.0, top_p: float = 1.0) -> Row:
    return Row(temperature=temperature, top_p=top_p, random=np.random.default_rng(seed))


def continued(decoder: Decoder, rows: list[Row], tokens: int) -> list[list[int]]:
    found = [[each.token] for each in rows]
    for _ in range(tokens - 1):
        decoder.step()
        for each, its in zip(rows, found, strict=True):
            its.append(each.token)
    return found


def alone(model: LanguageModel, prompt: str, made: Row, tokens: int) -> list[int]:
    decoder = Decoder(model)
    decoder.join(decoder.tokens(prompt), [made])
    return continued(decoder, [made], tokens)[0]


def test_the_likeliest_tokens_are_those_of_transformers_own_generate(model: LanguageModel) -> None:
    decoder = Decoder(model)
    rows = [row(temperature=0.0) for _ in PROMPTS]
    for prompt, each in zip(PROMPTS, rows, strict=True):
        decoder.join(decoder.tokens(prompt), [each])
    found = continued(decoder, rows, 40)
    for prompt, its in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([decoder.tokens(prompt)])
        with torch.inference_mode():
            wanted = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40,
                                          min_new_tokens=40, use_cache=True, pad_token_id=0, eos_token_id=None)
        assert its == wanted[0, ids.shape[1]:].tolist(), prompt
    assert len({tuple(its) for its in found}) == len(found), "they are told apart at all"


def test_a_seed_gives_the_same_text_alone_and_beside_others_that_come_and_go(model: LanguageModel) -> None:
    wanted = [alone(model, prompt, row(seed, 0.9, 0.95), 30) for seed, prompt in enumerate(PROMPTS)]
    decoder = Decoder(model)
    kept = row(0, 0.9, 0.95)
    decoder.join(decoder.tokens(PROMPTS[0]), [kept])
    found = continued(decoder, [kept], 5)[0]
    others = {seed: row(seed, 0.9, 0.95) for seed in (1, 2, 3)}
    its: dict[int, list[int]] = {}
    for seed, each in others.items():
        decoder.join(decoder.tokens(PROMPTS[seed]), [each])
        its[seed] = [each.token]
        decoder.step()
        found.append(kept.token)
        for known, tokens in its.items():
            tokens.append(others[known].token)
    decoder.leave([others[2]])  # the longest: the cache becomes narrower
    for _ in range(22):
        decoder.step()
        found.append(kept.token)
        for seed in (1, 3):
            its[seed].append(others[seed].token)
    assert found == wanted[0]
    for seed in (1, 3):
        assert its[seed] == wanted[seed][: len(its[seed])]
    assert its[2] == wanted[2][: len(its[2])]
    decoder.leave([kept, others[1], others[3]])
    assert decoder.rows == []


def test_continuations_of_one_prompt_read_it_once_and_are_as_if_each_had_read_it(model: LanguageModel) -> None:
    decoder = Decoder(model)
    rows = [row(seed) for seed in range(3)]
    calls = []
    handle = model.model.register_forward_hook(lambda *_: calls.append(1))
    decoder.join(decoder.tokens(PROMPTS[2]), rows)
    assert len(calls) == 1
    found = continued(decoder, rows, 12)
    handle.remove()
    assert found == [alone(model, PROMPTS[2], row(seed), 12) for seed in range(3)]
    assert len({tuple(its) for its in found}) == 3


# ── prompts that begin alike ──
def test_a_prompt_computes_only_what_follows_its_beginning_in_an_earlier_one(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are those without a prefix cache within 1e-5 of the largest, and the texts the same."""
    read: list[int] = []
    scores: list[torch.Tensor] = []

    def seen(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        scores.append(logits)
        return chosen(logits, rows)

    monkeypatch.setattr(decoding, "chosen", seen)
    handle = model.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].shape[1]), with_kwargs=True)
    decoder, without = Decoder(model, 1 << 20), Decoder(model)
    sizes: list[int] = []
    for end in ("", "", "one", "and another", "and another one"):
        prompt = decoder.tokens(PROMPTS[2] + end)
        rows, wanted = ([row(seed) for seed in range(2)] for _ in range(2))
        sizes.append(len(prompt))
        found = []
        for each, its in ((decoder, rows), (without, wanted)):
            each.join(prompt, its)
            found.append(continued(each, its, 12))
            each.leave(its)
        assert found[0] == found[1]
    handle.remove()
    with_cache, all_of_it = (read[place :: 2 * 12] for place in (0, 12))
    shared = sizes[0] // BLOCK * BLOCK
    assert all_of_it == sizes
    assert with_cache == [sizes[0], sizes[0] - shared, sizes[2] - shared, sizes[3] - shared,
                          sizes[4] - sizes[3] // BLOCK * BLOCK]
    assert decoder.prefix_tokens == sum(all_of_it) - sum(with_cache)
    for place in range(0, len(scores), 2 * 12):
        for one, other in zip(scores[place : place + 12], scores[place + 12 : place + 24], strict=True):
            assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def test_no_more_is_kept_of_prompts_than_may_be_and_the_latest_of_it() -> None:
    def made(prompt: Sequence[int], seed: int) -> KeyValueCache:
        random = torch.Generator().manual_seed(seed)
        return KeyValueCache([(torch.randn(1, 2, len(prompt), 3, generator=random),
                               torch.randn(1, 2, len(prompt), 5, generator=random)) for _ in range(3)])

    def known(prompt: Sequence[int]) -> int:
        return prefixes.begun(prompt).width

    of_a_block = 3 * 2 * (3 + 5) * BLOCK * 4
    prefixes = PrefixCache(6 * of_a_block + 100)
    first, second, third = ([token] * (3 * BLOCK + 5) for token in (1, 2, 3))
    states = made(first, 1)
    prefixes.keep(first, states)
    for place, (keys, values) in enumerate(prefixes.begun(first).states):
        assert torch.equal(keys, states.states[place][0][:, :, : 3 * BLOCK])
        assert torch.equal(values, states.states[place][1][:, :, : 3 * BLOCK])
    assert known(first[: 3 * BLOCK]) == 2 * BLOCK, "the last token's scores are needed"
    assert known([*first[: BLOCK + 1], 9, *first[BLOCK + 2 :]]) == BLOCK
    assert known([9, *first]) == 0
    prefixes.keep(second, made(second, 2))
    assert (known(first), known(second), prefixes.bytes) == (3 * BLOCK, 3 * BLOCK, 6 * of_a_block)
    prefixes.keep(first, states)
    prefixes.keep(third[: 2 * BLOCK + 1], made(third[: 2 * BLOCK + 1], 3))
    assert [known(prompt) for prompt in (first, second, third)] == [3 * BLOCK, BLOCK, 2 * BLOCK]
    prefixes.keep([4] * 20 * BLOCK, made([4] * 20 * BLOCK, 4))
    assert known([4] * 20 * BLOCK) == 6 * BLOCK
    assert [known(prompt) for prompt in (first, second, third)] == [0, 0, 0]
    assert prefixes.bytes == 6 * of_a_block
    none = PrefixCache(0)
    none.keep(first, states)
    assert (none.bytes, none.begun(first).width) == (0, 0)


_MEASURED = """
import gc, json
import numpy as np, psutil, torch
from jobs.transformer.decoding import Decoder
from tests.unit.language_model import language_model

torch.set_num_threads(1)
decoder, before = Decoder(language_model(), int({most})), 0
for number in range(-2, {prompts}):
    if number == 0:  # what the first texts load and reserve is not of prompts
        before, kept = psutil.Process().memory_info().rss, decoder.prefix_bytes
    row = decoder.row(0.0, 1.0, np.random.default_rng(0))
    decoder.join([0, 1 + (number + 2) % 250, *(k % 251 for k in range({tokens} - 2))], [row])
    decoder.leave([row])
    if number >= 0:
        gc.collect()
        print(json.dumps([decoder.prefix_bytes - kept, psutil.Process().memory_info().rss - before]))
"""


def test_a_process_grows_by_what_it_says_that_it_keeps_of_prompts_and_then_no_more() -> None:
    """In a process of its own, whose memory nothing else takes: within a third of all of it while it fills,
    and by less than a quarter of it when all of it has gone and come again."""
    most, prompts, tokens = 16 << 20, 64, 1000
    done = subprocess.run([sys.executable, "-c", _MEASURED.format(most=most, prompts=prompts, tokens=tokens)],
                          capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    said, grew = zip(*map(json.loads, done.stdout.splitlines()), strict=True)
    assert 0.85 * most < said[-1] <= most
    full = said.index(said[-1])
    assert full < 0.6 * prompts, "from then on, the oldest goes for each that comes"
    for place in (full // 2, full):
        assert abs(grew[place] - said[place]) < most / 3
    assert max(grew[full:]) - grew[full] < most / 4


# ── tokens ──
def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.0, 0.3]]))
    rows = [row(seed) for seed in range(4000)]
    counts = Counter(chosen(logits.expand(4000, -1), rows))
    assert counts[2] == 0
    for token, chance in ((0, 0.5), (1, 0.2), (3, 0.3)):
        assert abs(counts[token] / 4000 - chance) < 0.03
    sharp = Counter(chosen(logits.expand(4000, -1), [row(seed, temperature=0.5) for seed in range(4000)]))
    assert abs(sharp[0] / 4000 - 0.25 / 0.38) < 0.03, "p² over their sum"
    few = Counter(chosen(logits.expand(4000, -1), [row(seed, top_p=0.7) for seed in range(4000)]))
    assert set(few) == {0, 3}, "0.5 and 0.3 have 0.7 together"
    assert set(chosen(logits.expand(50, -1), [row(seed, top_p=0.1) for seed in range(50)])) == {0}
    assert set(chosen(logits.expand(50, -1), [row(seed, temperature=1e-9) for seed in range(50)])) == {0}


def test_a_batch_may_hold_rows_of_every_kind() -> None:
    logits = torch.randn(3, 50)
    rows = [row(1, 0.0), row(2, 1.0, 0.5), row(3, 0.7)]
    assert chosen(logits, rows) == [chosen(logits[i : i + 1], [made])[0] for i, made in
                                    enumerate([row(1, 0.0), row(2, 1.0, 0.5), row(3, 0.7)])]


def test_text_comes_in_whole_characters(model: LanguageModel) -> None:
    decoder = Decoder(model)
    pieces, text = decoder.pieces(), "né €, 😀 end"
    found = [pieces(token) for token in decoder.tokens(text)[1:]]
    assert "".join(found) == text
    assert len(found) == len(text.encode())
    assert all(piece in ("", *text) for piece in found)
    assert decoder.tokens("<|endoftext|>") == [0, *(decoder.tokens("<")[1:]), *decoder.tokens("|endoftext|>")[1:]], (
        "who writes the end's name does not end the prompt")


def test_a_model_whose_rows_disturb_each_other_is_refused(model: LanguageModel) -> None:
    assert Decoder(model).max_tokens == POSITIONS
    Decoder(model).check()
    disturbed = language_model(1)
    forward = disturbed.model.forward
    disturbed.model.forward = lambda **given: forward(**given | {"attention_mask": None})
    with pytest.raises(ArtifactError, match="cannot write several texts at a time"):
        Decoder(disturbed).check()


def test_a_model_that_continues_no_kept_beginning_is_refused_with_what_to_pass() -> None:
    disturbed = language_model(1)
    forward = disturbed.model.forward

    def forgetful(**given: Any) -> Any:
        known = given["past_key_values"].width if "past_key_values" in given else 0
        found = forward(**given)
        if known and given["input_ids"].shape[1] > 1:
            given["past_key_values"].states[0][1].zero_()
        return found

    disturbed.model.forward = forgetful
    Decoder(disturbed).check()
    with pytest.raises(ArtifactError, match=r"begins as an earlier one .* pass --prefix-cache-mib 0"):
        Decoder(disturbed, 1 << 20).check()
