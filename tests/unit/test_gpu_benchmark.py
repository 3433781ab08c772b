"""The benchmarks of a GPU, in miniature: what they measure, and which rows fit by the plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.transformer.plan import RESERVED, plan
from tests.benchmarks.gpu.__main__ import CASES, MINIATURE, Settings, measure, recipe
from tests.unit.test_chat import some, write_lines


def test_a_step_of_each_case_is_measured(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on a mat and saw one dog near two birds. " * 80)
    settings = replace(MINIATURE, steps=1, peak_tflops=0.1, generate=str(tmp_path / "text.txt"),
                       chat=str(write_lines(tmp_path / "talks.jsonl", some(60))))
    found = measure(settings, tmp_path, "cpu", 24e9)
    assert list(found.samples) == [name for name, case in CASES.items() if "hardware" not in case]
    for name, of in found.samples.items():
        rows = of["config"]["train"]
        assert rows == {"global_batch_size": 4, "max_rows_per_pass": 2, "max_steps": 1}
        assert 0.7 * 4 * 64 < of["tokens"] <= 4 * 64 and of["tokens_per_s"] == of["tokens"] / of["seconds"]
        assert 3 < of["losses"][0] < 8 and of["planned_bytes"] > 1e5 and not of["peak_bytes"]
        assert {figure.name: figure.value for figure in found.figures}[f"{name}: MFU"] == 100 * of["mfu"] > 0


@pytest.mark.parametrize(("memory", "rows"), [(24, [8, 2, 8]), (80, [32, 8, 8])])
def test_as_many_rows_a_pass_as_the_plan_allows(memory: int, rows: list[int]) -> None:
    cases = [CASES[name] for name in ("llama-124m, pretraining", "llama-1b, pretraining", "llama-1b, LoRA SFT")]
    made = [recipe(Settings(), case, "case", memory * 1e9, on_gpu=True) for case in cases]
    assert [asked.rows_per_gpu for _, asked in made] == rows
    assert all(plan(asked)[0].total <= memory * 1e9 - RESERVED for _, asked in made if asked.rows_per_gpu > 1)
    assert made[0][0]["train"]["global_batch_size"] == 64
