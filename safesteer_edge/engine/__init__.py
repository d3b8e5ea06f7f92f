"""llama.cpp: the only package that imports llama_cpp, and the owner of every native handle."""
