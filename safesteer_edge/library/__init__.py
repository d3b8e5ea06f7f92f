"""The models on this machine: pulled from a hub or added from files, with their hashes."""
