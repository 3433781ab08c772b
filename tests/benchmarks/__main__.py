"""`make bench` and `make soak`: `python -m tests.benchmarks [NAME …] [--soak] [--quick]` measures, writes
results/NAME.json and the READMEs' tables.

Exit code 1 if a threshold is missed. `--quick` only tries the benchmarks out: tiny settings, nothing is written.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import results

NAMES = ("mlp_throughput", "ray_share", "checkpoint_cost", "memory_and_disk", "startup", "recovery", "accuracy",
         "cnn_throughput", "cnn_scaling", "cnn_startup", "cnn_accuracy",
         "transformer_throughput", "fine_tuning", "transformer_steps", "attention", "languages", "library",
         "shakespeare", "sft", "preparing", "pictures", "loading",
         "tuning_samplers", "tuning_overhead", "tuning_schedulers", "tuning_presets", "transformer_preset",
         "serving_http", "serving_text", "optimise", "serving_scaling", "slow_network", "scale", "tabular",
         "module_throughput", "predicting", "any_workers", "depth", "two_tiers")
SOAKS = ("strategies", "serving_soak", "hosts", "any_workers_soak")
"""What runs long: full matrices, steady load."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES, *SOAKS], metavar="NAME",
                        help=f"which (without one: {', '.join(NAMES)}); by name only: {', '.join(SOAKS)}")
    parser.add_argument("--soak", action="store_true", help=f"instead of the benchmarks: {', '.join(SOAKS)}")
    parser.add_argument("--quick", action="store_true",
                        help="tiny settings, to try it out; writes nothing, checks nothing")
    parser.add_argument("--folder", type=Path, help="where data and runs go meanwhile (a temporary folder)")
    asked = parser.parse_args()
    failures: list[str] = []
    for name in asked.names or (SOAKS if asked.soak else NAMES):
        with tempfile.TemporaryDirectory(prefix=f"trainyard-bench-{name}-", dir=asked.folder) as folder:
            failures += run(name, Path(folder), quick=asked.quick)
    for failure in failures:
        print(f"missed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run(name: str, folder: Path, *, quick: bool) -> list[str]:
    """Carries out one benchmark. Returns the thresholds that it misses."""
    module = importlib.import_module(f"tests.benchmarks.{name}")
    settings = module.QUICK if quick else module.Settings()
    load, began = list(os.getloadavg()), time.perf_counter()
    print(f"{name}: {module.TITLE} (load {load[0]:.2f})", flush=True)
    outcome = module.measure(settings, folder)
    result = results.made(name, module.TITLE, asdict(settings), outcome, load, began)
    print(results.section(result), flush=True)
    if quick:
        return []
    result.save()
    results.write_readmes(results.load_all())
    return result.failures


if __name__ == "__main__":
    sys.exit(main())
