"""What each slash command, key and menu entry does in the full-screen chat."""
