"""Known models: the catalogue, the embedded default's guard bundle, and the recipes for both."""
