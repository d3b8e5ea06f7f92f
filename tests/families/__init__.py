"""What the engine is proven to do for each model family, and the table in docs/families.md."""
