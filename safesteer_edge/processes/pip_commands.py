"""Command lines for pip that work where this program runs, in any shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

LLAMA_PACKAGE = "llama-cpp-python"


def install_command(*requirements: str) -> str:
    """The command that installs these requirements for this very Python."""
    return f"{_pip()} install {' '.join(quoted(text) for text in requirements)}"


def reinstall_command(*requirements: str) -> str:
    """The same, replacing what is there and leaving its dependencies alone."""
    return install_command("--force-reinstall", "--no-deps", *requirements)


def uninstall_command(*names: str) -> str:
    """The command that removes these packages."""
    return f"{_pip()} uninstall -y {' '.join(names)}"


def build_llama_command(version: str | None, *cmake_options: str) -> str:
    """The command that builds llama-cpp-python from source with options, such as GGML_CUDA=on.

    version: None is the newest. Options go by `-C`, not by CMAKE_ARGS: each shell sets variables
    in another way. A cached wheel of another build must not be taken, hence --no-cache-dir.
    """
    cmake_arguments = ";".join(f"-D{option}" for option in cmake_options)
    return reinstall_command(
        "--no-cache-dir",
        f"--no-binary={LLAMA_PACKAGE}",
        "-C",
        f"cmake.args={cmake_arguments}",
        f"{LLAMA_PACKAGE}=={version}" if version else LLAMA_PACKAGE,
    )


def quoted(word: str) -> str:
    """A word of a command line as any shell reads it."""
    plain, special = ("-_./:=\\", '"$`!') if os.sep == "\\" else ("-_./:=", '"$`!\\')
    if all(character.isalnum() or character in plain for character in word):
        return word
    # Double quotes mean the same to POSIX shells, PowerShell and cmd, unless one of these is there.
    return f'"{word}"' if not set(word) & set(special) else shlex.quote(word)


def _pip() -> str:
    """How to call pip: by Python's short name if that is what the shell would find."""
    executable = Path(sys.executable or "python")
    found = shutil.which(executable.name)
    if found is not None and Path(found) == executable:
        return f"{executable.name} -m pip"
    return f"{quoted(str(executable))} -m pip"
