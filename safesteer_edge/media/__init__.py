"""Images and sounds from untrusted files to plain arrays, under limits."""
