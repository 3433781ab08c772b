"""Gives `load_predictor` by the path that the cards of variants of earlier versions name."""

from jobs.common.predictor.find import load_predictor

__all__ = ["load_predictor"]
