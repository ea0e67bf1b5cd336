"""Where presets lie, and which file a name means.

A name such as `runs/quickstart` is looked up in `configs/` of the checkout, or in the copy of it
that the installed package carries.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from maxlm import storage
from maxlm.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent


def preset_folders() -> list[Path]:
    """Existing folders of presets: the checkout's before the installed package's."""
    return [p for p in (_PACKAGE.parent / "configs", _PACKAGE / "configs") if _is_ours(p)]


def preset_names() -> list[str]:
    """Sorted names of all presets, such as `models/gpt2-124m`."""
    names = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in preset_folders()
        for path in folder.glob("*/**/*.yaml")
    }
    return sorted(names)


def find_config(name: str, *, beside: str | None = None, named_by: str | None = None) -> str:
    """The file that a config's name means.

    Args:
        name: a path or a preset's name, with or without `.yaml`.
        beside: path of the file that extends it; looked up in its folder first.
        named_by: where the name was written, for the error.

    Raises:
        ConfigError: there is no such file; names the nearest preset.
    """
    for candidate in _candidates(name, beside):
        if storage.is_remote(candidate):
            if storage.exists(candidate):
                return candidate
        elif Path(candidate).is_file():
            return _short(candidate)
    names = preset_names()
    hint = did_you_mean(name.removesuffix(".yaml"), names) or _same_last_part(name, names)
    prefix = f"{named_by}: " if named_by else ""
    folder = f"the folder of {beside}" if beside else "the current folder"
    raise ConfigError(
        f"{prefix}no config '{name}'{hint}; looked in {folder} and among the presets "
        "(`maxlm config list` names them)"
    )


def _candidates(name: str, beside: str | None) -> Iterable[str]:
    if storage.is_remote(name) or Path(name).is_absolute():
        folders = [""]
    else:
        folders = [os.path.dirname(beside) if beside else ""]  # also of a gs:// path
        folders += [str(folder) for folder in preset_folders()]
    for folder in folders:
        path = storage.join(folder, name) if folder else name
        yield path
        if not name.endswith((".yaml", ".yml")):
            yield path + ".yaml"


def _same_last_part(name: str, names: list[str]) -> str:
    """`gpt2-124m` for `models/gpt2-124m`."""
    last = name.removesuffix(".yaml").rsplit("/", 1)[-1]
    by_last = {known.rsplit("/", 1)[-1]: known for known in names}
    if last in by_last:
        return f" (did you mean '{by_last[last]}'?)"
    near = did_you_mean(last, by_last)
    return near and f" (did you mean '{by_last[near.split(chr(39))[1]]}'?)"


def _short(path: str) -> str:
    """Relative to the current folder where it lies inside: errors are easier to read."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else path


def _is_ours(folder: Path) -> bool:
    """`site-packages/configs` of another package is none of our business."""
    return (folder / "models").is_dir() and (folder / "runs").is_dir()
