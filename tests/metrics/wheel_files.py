"""Wheel tables of the published layout with words of our own."""

from __future__ import annotations

from pathlib import Path

from openpyxl import Workbook

FULL = [
    ("Joy", "glad", None), (None, "Proud", None),
    ("sadness", "blue", None),
    ("fear", "dread", None),
]  # fmt: skip
WITHOUT_FEAR = FULL[:3]
SYNONYMS = [("glad", "['happy', 'cheery']"), ("blue", "feeling"), ("proud", "Feeling, happy"), ("dread", None)]
FORMATS = [
    ("happy", "happily"), ("glad", "[gladly]"), ("joy", ""), ("proud", ""), ("blue", ""), ("dread", ""),
    ("feeling", ""),
]  # fmt: skip


def write_table(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    book = Workbook()
    book.active.append(header)
    for row in rows:
        book.active.append(row)
    book.save(path)


def write_tables(folder: Path) -> Path:
    """wheel1..5.xlsx (the second without fear), synonym.xlsx, format.csv."""
    for number in range(1, 6):
        rows = WITHOUT_FEAR if number == 2 else FULL
        write_table(folder / f"wheel{number}.xlsx", ("level1", "level2", "level3"), rows)
    header = tuple(name for run in range(1, 9) for name in (f"word_run{run}", f"synonym_run{run}"))
    write_table(folder / "synonym.xlsx", header, [(word, synonyms) * 8 for word, synonyms in SYNONYMS])
    lines = ["name,format"] + [f'{name},"{formats}"' for name, formats in FORMATS]
    (folder / "format.csv").write_text("\n".join(lines) + "\n")
    return folder
