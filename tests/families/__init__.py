"""What the engine is proven to do for each model family, and the table of it in docs/families.md."""
