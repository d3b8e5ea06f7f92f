"""The engine in a child process, behind the same session interface.

A native abort, a SIGSEGV or the OOM killer then costs the answer in flight, and not the program.
"""
