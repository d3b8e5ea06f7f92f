"""What the user sets once: a typed TOML file in the configuration folder. See docs/settings.md."""
