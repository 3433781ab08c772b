"""The pages that show a model: its metrics, its mistakes, its attributions and its robustness."""
