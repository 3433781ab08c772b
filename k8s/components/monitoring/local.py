"""Prometheus without Kubernetes: writes a configuration that finds the nodes of a Ray cluster,
with the rules of this folder.

    python -m k8s.components.monitoring.local FOLDER [--targets FILE]     then the command that it prints

Ray's head lists its nodes in `prom_metrics_service_discovery.json`, which Prometheus reads again by itself:
nodes may come and go.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).with_name("rules.yaml")
TARGETS = "prom_metrics_service_discovery.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m k8s.components.monitoring.local", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where prometheus.yml and rules.yml are written")
    parser.add_argument("--targets", type=Path, metavar="FILE", default=None,
                        help=f"the head's {TARGETS}: by default of what `python -m cluster up` started, else below "
                             "/tmp/ray")
    options = parser.parse_args(arguments)
    targets = options.targets or default_targets()
    if not targets.exists():
        print(f"{targets} is not there: run this on the head's machine while the cluster is up, or pass --targets",
              file=sys.stderr)
        return 2
    config = write(options.folder, targets)
    print(f"prometheus --config.file={config} --storage.tsdb.path={options.folder.absolute() / 'data'} "
          "--web.listen-address=127.0.0.1:9090")
    return 0


def default_targets() -> Path:
    from cluster.local import cluster as local

    cluster = local.current()
    return (Path(cluster.folder) / "head" if cluster else Path("/tmp/ray")) / TARGETS


def rules() -> dict[str, Any]:
    """The groups of rules as Prometheus itself takes them: a PrometheusRule's spec."""
    return yaml.safe_load(RULES.read_text())["spec"]


def write(folder: Path, targets: Path, interval: str = "15s") -> Path:
    """prometheus.yml, whose path is returned, and rules.yml.
    interval: between scrapes, and between evaluations of the rules."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yml").write_text(yaml.safe_dump(rules(), sort_keys=False))
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [str(targets.absolute())]}]}],
    }
    path = (folder / "prometheus.yml").absolute()
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


if __name__ == "__main__":
    sys.exit(main())
