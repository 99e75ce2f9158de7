"""Work that takes long and goes on where it stopped: what is done lies in a file, with what it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graftlm.errors import InputError
from graftlm.runs.files import append_line, drop_partial_line, dump_json, plain, read_json_lines, remove, write_text


class DoneItems:
    """A file with a line for each item done, in their order (`lines`), below a line of what the items depend on."""

    def __init__(self, path: Path, depends_on: Mapping[str, Any], *, resume: bool) -> None:
        """Raises InputError where items are to be resumed that depend on something else; it names what differs."""
        self.path, self.lines = path, list[dict[str, Any]]()
        self._head, self._begun = plain(depends_on), False
        if not resume or not path.exists():
            return
        drop_partial_line(path)
        try:
            lines = read_json_lines(path)
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); --overwrite starts anew") from error
        if lines:
            check_same(path, self._head, lines[0])
            self.lines, self._begun = lines[1:], True

    def add(self, line: Mapping[str, Any]) -> None:
        if not self._begun:
            write_text(self.path, dump_json(self._head) + "\n")
            self._begun = True
        append_line(self.path, dump_json(line))
        self.lines.append(plain(line))

    def remove(self) -> None:
        remove(self.path)


def check_same(path: Path, now: Mapping[str, Any], before: Mapping[str, Any], otherwise: str = "--overwrite") -> None:
    """Raise InputError where what a file depends on was another when it was made; it names what differs."""
    if differing := [name for name in now if now[name] != before.get(name)]:
        raise InputError(f"{path} was made with another {', '.join(differing)}; give the same to go on, or {otherwise}")


def load_or_make(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON value in `path`; it is made and written first where there is none."""
    if not path.exists():
        write_text(path, dump_json(make(), indent=2) + "\n")
    return json.loads(path.read_text("utf-8"))
