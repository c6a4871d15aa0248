"""The menu of `main.py`: the presets, a line and this machine's forecast for each."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmloop.durable import in_words
from lmloop.preset.reading import LoadedPreset, list_presets, presets_folder

DEFAULT = "00_best_general"


def main() -> int:
    """Show the menu, train what is chosen; the exit status. Of several processes one asks for all."""
    try:
        from lmloop.launch import train_chosen

        return train_chosen(_ask)[1]
    except ValueError as error:
        print(f"lmloop: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        print(f"lmloop: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _ask() -> LoadedPreset | int:
    console = Console()
    folder = presets_folder()
    listed = list_presets(folder)
    if not listed:
        console.print(f"no presets in {folder}/: put one there, or get the shipped ones back with `git checkout configs`")
        return 2
    _show(console, listed)
    return _choose(console, listed)


def _show(console: Console, listed: list[tuple[Path, LoadedPreset | ValueError]]) -> None:
    from lmloop.plan import menu_forecasts
    from lmloop.processes import find_place

    forecasts = menu_forecasts([entry for _, entry in listed if isinstance(entry, LoadedPreset)], console)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    where = "on this machine" if find_place().world == 1 else "in one process here"
    for column in ("", "preset", "what it trains", where):
        table.add_column(column)
    for number, (path, entry) in enumerate(listed, 1):
        if isinstance(entry, LoadedPreset):
            preset = entry.preset
            forecast = escape(forecasts[path])
            if console.width < 100:
                forecast = forecast.replace(", ", ",\n")
            table.add_row(f"{number}", f"[bold]{escape(path.stem)}[/]", escape(preset.description), forecast)
        else:
            table.add_row(f"{number}", escape(path.stem), f"[red]{escape(str(entry))}[/]", "")
    console.print(table)


def _choose(console: Console, listed: list[tuple[Path, LoadedPreset | ValueError]]) -> LoadedPreset | int:
    """The preset that the user names by number or name; an exit status where there is none."""
    names = [path.stem for path, _ in listed]
    default = names.index(DEFAULT) if DEFAULT in names else 0
    question = f"\nWhich one? [1-{len(names)}, Enter = {names[default]}] "
    answered = False
    while True:
        console.print(escape(question), end="")
        line = sys.stdin.readline()
        answer = line.strip()
        if not sys.stdin.isatty() or not line:
            console.print(escape(answer))  # so that a log shows what was chosen, and Ctrl-D ends the line
        if not line and answered:
            console.print("no preset was chosen")
            return 2
        answered = True
        if not answer:
            index = default
        elif answer.isdigit() and 1 <= int(answer) <= len(names):
            index = int(answer) - 1
        elif answer in names:
            index = names.index(answer)
        else:
            console.print(f"'{escape(answer)}' is not in the list: type a number from 1 to {len(names)} or a name")
            continue
        entry = listed[index][1]
        if isinstance(entry, LoadedPreset):
            return entry
        console.print(f"[red]{escape(str(entry))}[/]")
