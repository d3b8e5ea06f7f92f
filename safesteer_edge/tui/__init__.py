"""The chat in a terminal: a Textual application, and a plain one of lines. Nothing imports it."""
