"""Excel's .xlsx: the first sheet is a table as a CSV file is, with images beside the file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ... import log
from ...errors import DataError
from ..image_file import system_devices
from ..image_listing import Listing, list_rows
from ..source import DataSource, importing, register

SUFFIX = ".xlsx"
_MOST_UNPACKED = 1 << 30  # bytes of the parts of a file together
_MOST_COLUMNS = 1000


@register
class ExcelWorkbook(DataSource):
    name = "excel"

    def recognises(self, data: Path, entries: Collection[str]) -> bool:
        return data.name.lower().endswith(SUFFIX) and not os.path.isdir(data)

    def list(self, data: Path, group: str | None) -> Listing:
        with importing("openpyxl", data):
            import openpyxl
        _check(data)
        try:
            book = openpyxl.load_workbook(data, read_only=True, data_only=True, keep_links=False)
            try:
                rows = _rows(book.worksheets[0])
                _, header = next(rows, (1, []))
                listing, ignored = list_rows(data, header, rows, group)
            finally:
                book.close()
        except DataError:
            raise
        except Exception as error:  # openpyxl's are of many kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{data} cannot be read ({reason}); save it again, or as a CSV") from None
        if ignored:
            log.info(f"{data}: columns that are not read: {', '.join(ignored)}")
        return listing


def _check(data: Path) -> None:
    """Raises DataError unless `data` is a ZIP file of bounded size."""
    if not data.is_file() or data.stat().st_dev in system_devices():
        raise DataError(f"{data} is not a regular file; give an Excel file that exists")
    try:
        with zipfile.ZipFile(data) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{data} is no Excel file ({error}); save it as .xlsx") from None
    if unpacked > _MOST_UNPACKED:
        raise DataError(f"{data} is too large for a table ({unpacked:,} bytes unpacked); check what it is")


def _rows(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each row that is not empty, without the empty cells at its end."""
    rows = sheet.iter_rows(values_only=True, max_col=_MOST_COLUMNS)
    for line, values in enumerate(rows, 1):
        cells = [_text(value) for value in values]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield line, cells


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Excel has no other numbers
    return "" if value is None else str(value)
