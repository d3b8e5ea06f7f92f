"""A local server in front of guarded models, in the dialects that other programs speak."""
