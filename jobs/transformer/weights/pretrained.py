"""What is refused of a pretrained model, a folder or a name on the hub, before anything of it is loaded.
Imports no framework."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import shlex

from cluster.core.auth import expanded
from cluster.core.documents import MOST_JSON_BYTES, DocumentError, read_bounded
from cluster.core.errors import ConfigError
from jobs.common.artifact import model_config


def check_base(name: str) -> None:
    """Raises: ConfigError if its files ask for code that would run, or for files elsewhere."""
    folder = expanded(name)
    if not folder.is_dir():
        _check_on_hub(name)
        return
    present = [path.name for path in folder.iterdir()]
    for path in sorted(folder.glob("*.json")):
        try:
            why = model_config.refusal(path.name, read_bounded(path, MOST_JSON_BYTES), present)
        except (DocumentError, OSError) as error:
            why = f"cannot be read ({error})"
        if why:
            raise ConfigError(f"--model.name {name}: {path.name} {why}: take a model that transformers itself has the "
                              "code of, with weights in safetensors")


def check_weights(name: str) -> None:
    """Raises: ConfigError if a folder's weights are a pickle, or an update of another model's."""
    folder = expanded(name)
    if not list(folder.glob("*.safetensors")) and (pickles := [*folder.glob("*.bin"), *folder.glob("*.pt")]):
        quoted = json.dumps(name, ensure_ascii=False)
        convert = ("from transformers import AutoModel; "
                   f"AutoModel.from_pretrained({quoted}, use_safetensors=False).save_pretrained({quoted})")
        raise ConfigError(
            f"--model.name {name}: its weights are a pickle ({pickles[0].name}), which can run code when it is read. "
            f"If you trust it, convert it once: python -c {shlex.quote(convert)}")
    if (folder / "adapter_config.json").exists():
        raise ConfigError(f"--model.name {name}: adapter_config.json names another model, which would be loaded too: "
                          "merge the adapter into it first (--export.merge as it is trained, or peft's "
                          "merge_and_unload), and pass that folder")


def _check_on_hub(name: str) -> None:
    """Of what cannot be had, whoever loads it says why."""
    from transformers.configuration_utils import PreTrainedConfig

    try:
        found, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError):
        return
    if why := model_config.refusal("config.json", json.dumps(found, default=str).encode()):
        raise ConfigError(f"--model.name {name}: its config.json {why}: take a model that transformers itself has the "
                          "code of")
