"""The command line: a leaf that nothing imports. Answers on stdout, narration on stderr."""
