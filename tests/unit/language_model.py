"""A language model with random weights that are large enough to prefer some bytes to others, without a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jobs.transformer.build import build_model
from jobs.transformer.model import LanguageModel
from jobs.transformer.text.tokenizer import train
from tests.unit.token_rows import config_of

POSITIONS = 2048


CONTROL = ("<|im_start|>", "<|im_end|>", "[TOOL_CALLS]")
"""Special tokens of a model that chats."""


def language_model(seed: int = 0, chat_template: str | None = None) -> LanguageModel:
    """chat_template: of a model that chats, whose tokenizer has CONTROL, too."""
    config = config_of(data={"tokenizer": "bytes", "max_length": 64}, run={"seed": seed})
    tokenizer = train(config, ())
    if chat_template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL]})
        tokenizer.chat_template = chat_template
    details = {"max_length": 64, "vocab_size": len(tokenizer), "pad_id": 0, "start_id": 0, "end_id": None}
    model = build_model(config, details, ())
    model.generation_config.use_cache = True
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return LanguageModel(model, tokenizer, 0, None)


@contextmanager
def one_thread() -> Iterator[None]:
    """For as long as small models compute: threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
