"""What shows a cluster and its runs: `status`, `watch`, and the metrics behind them."""
