"""The model card (Mitchell et al. 2019): what a model is, how well it does and what it is not for, in Markdown."""

from collections.abc import Mapping

from jobs.common.artifact.manifest import Description, Variant, lineage
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.formatting import shown

_LOAD = '''from jobs.common.artifact.artifact import open_artifact

artifact = open_artifact("ARTIFACT")   # every file is verified first
weights = artifact.weights()           # tensors by name
rows = artifact.probe()                # some inputs, and the answers that this model must give'''


def text(description: Description) -> str:
    """The card of a model, whole."""
    parts = [
        f"# {description.job}: {description.task}", description.about,
        *(("## What it was made of", _made_of(description.variant)) if description.variant else ()),
        "## How well it does", _metrics(description.metrics),
        "## What it was trained on", _facts(description.data),
        "## What goes in, what comes out", _tensors(description),
        "## What it is not for", _limits(description.limits),
        "## How to load it", f"```python\n{description.how_to_load.strip() or _LOAD}\n```",
        "## Where it comes from",
        _facts({**({"began with": lineage(description.started_from)} if description.started_from else {}),
                "code": description.code, **description.libraries}),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _made_of(variant: Variant) -> str:
    version = f" ({_cell(variant.parent_version)})" if variant.parent_version else ""
    where = _cell(variant.machine.get("processor", "one machine"))
    lines = [f"`{variant.name}` of the model with digest `{variant.parent_digest[:12]}`{version}. Both measured on "
             f"{where}:", "",
             "| figure | that model | this one | change |", "|---|---|---|---|"]
    for name, change in variant.change.items():
        if not name.endswith(("_low", "_high")):
            of = (_figure(variant.parent_figures[name]), _figure(variant.figures[name]), _figure(change, "+"))
            lines.append(f"| {_cell(name)} | {' | '.join(of)} |")
    return "\n".join(lines)


def _figure(value: float, sign: str = "") -> str:
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4f}"


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    lines: list[str] = []
    for split, values in metrics.items():
        lines += ["", f"On the {split} split:", "", "| metric | value |", "|---|---|"]
        lines += [f"| {_cell(name)} | {shown} |" for name, shown in _with_interval(values).items()]
    return "\n".join(lines).strip() or "It was not evaluated."


def _with_interval(values: Mapping[str, float]) -> dict[str, str]:
    """An interval's ends go beside the figure that they belong to."""
    ends = {f"{name}_{end}" for name in values for end in ("low", "high")}
    shown = {name: f"{value:.4f}" for name, value in values.items() if name not in ends}
    for name in shown:
        if (low := values.get(f"{name}_low")) is not None and (high := values.get(f"{name}_high")) is not None:
            shown[name] += f" (95% interval {low:.4f} to {high:.4f})"
    return shown


def _facts(values: Mapping[str, object]) -> str:
    return "\n".join(f"- {_cell(key.replace('_', ' '))}: {_cell(shown(value))}" for key, value in values.items())


def _tensors(description: Description) -> str:
    def line(kind: str, spec: TensorSpec) -> str:
        sizes = " × ".join("any" if size == -1 else str(size) for size in spec.shape)
        return f"- {kind} `{spec.name}`: {spec.datatype}, {sizes}"

    lines = [line("input", spec) for spec in description.inputs] + [line("output", spec)
                                                                    for spec in description.outputs]
    if description.labels:
        shown = ", ".join(_cell(label) for label in description.labels[:20])
        lines.append(f"- {len(description.labels)} classes: {shown}{', …' if len(description.labels) > 20 else ''}")
    return "\n".join(lines)


def _limits(limits: tuple[str, ...]) -> str:
    always = "Its figures hold for data like that of its test split; on other data measure again before relying on it."
    return "\n".join(f"- {sentence}" for sentence in (*limits, always))


def _cell(value: object) -> str:
    """On one line, and no markup: names of classes come from the data."""
    flat = " ".join(str(value).split())
    for mark in "\\`*|<>[]#":
        flat = flat.replace(mark, f"\\{mark}")
    return flat
