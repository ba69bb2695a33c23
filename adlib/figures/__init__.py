"""Drawing: every `plot_*` takes stored results and returns a matplotlib Figure."""
