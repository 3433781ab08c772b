"""What a replica that writes text knows of earlier prompts, and what that has saved: Prometheus metrics through Ray."""

from serving.core.settings import ModelSettings
from serving.text.generation import Generator


class PrefixMetrics:
    def __init__(self, settings: ModelSettings, generator: Generator) -> None:
        from ray.util.metrics import Counter, Gauge

        of_model = ("model", "version")
        self._generator, self._counted = generator, 0
        self._tokens = Counter("trainyard_serving_prefix_tokens_total",
                               "Of prompts, those that an earlier prompt began with and that were not computed again.",
                               of_model)
        self._bytes = Gauge("trainyard_serving_prefix_cache_bytes", "Of earlier prompts, in a replica.", of_model)
        for each in (self._tokens, self._bytes):
            each.set_default_tags({"model": settings.name, "version": settings.version})

    def count(self) -> None:
        """Once a second."""
        self._bytes.set(self._generator.prefix_bytes)
        new = self._generator.prefix_tokens - self._counted
        if new > 0:
            self._tokens.inc(new)
            self._counted += new
