"""Labels as a dataset of Hugging Face's `datasets`, and back. Nothing is sent or fetched."""

from __future__ import annotations

from dataclasses import asdict, fields
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from ..bench.judges.base import PictureError, png_of, read_picture
from ..grammar import first_line
from ..libraries import install
from .labels import Label, Labels, LabelsError, Source, read_rows

__all__ = ["from_dataset", "load_dataset", "save_dataset", "to_dataset"]

_FIELDS = [field.name for field in fields(Label)]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise LabelsError(f"this needs the datasets package: {install('judge')}") from None
    datasets.disable_progress_bars()
    return datasets


def to_dataset(labels: Labels) -> Any:
    """A `datasets.Dataset`, one row an answer: the picture ("image"), its hash ("sha256") and the other fields of `Label`."""
    lib = _datasets()
    kinds = {"answer": "bool", "seconds": "float64", "confidence": "float64"}
    features = {name: lib.Value(kinds.get(name, "string")) for name in _FIELDS if name != "image"}
    rows = [
        {**asdict(label), "image": {"bytes": labels.png(label), "path": None}, "sha256": label.image}
        for label in labels
    ]
    given = lib.Features({"image": lib.Image(), "sha256": lib.Value("string"), **features})
    return lib.Dataset.from_list(rows, features=given)


def from_dataset(dataset: Any, source: str = "dataset") -> Labels:
    """The labels of a dataset with the columns of `to_dataset`; those that a label may lack may be missing.

    Pictures in another form than PNG of nothing but pixels are re-coded and get another hash, whatever the dataset says.

    Raises:
        LabelsError: no such columns, a picture that cannot be read, or rows that are no labels.
    """
    lib = _datasets()
    missing = [
        name for name in ("image", "question", "asks", "answer", "annotator") if name not in dataset.column_names
    ]
    if missing:
        raise LabelsError(f"{source} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}")
    try:
        rows = dataset.cast_column("image", lib.Image(decode=False))
    except Exception as error:  # of pyarrow's kinds
        raise LabelsError(f"the column image of {source} holds no pictures: {first_line(error)}") from error
    images: dict[str, Source] = {}
    read: list[tuple[int, Any]] = []
    for number, row in enumerate(rows, 1):
        entry = {name: row[name] for name in _FIELDS if name in row and not (row[name] is None and name in _TEXTS)}
        try:
            held = row["image"] or {}
            data = held.get("bytes") or (Path(held["path"]).read_bytes() if held.get("path") else b"")
            if sha256(data).hexdigest() != row.get("sha256") or not _bare(data):
                data = png_of(read_picture(BytesIO(data), any_format=True))
            entry["image"] = sha256(data).hexdigest()
            images[entry["image"]] = data
            read.append((number, entry))
        except (PictureError, OSError) as error:
            read.append((number, f"image: {error}"))
    return Labels(read_rows(source, "row", read), images, [source], [f"{source} row {number}" for number, _ in read])


_TEXTS = ("group", "category", "damage", "item")


def _bare(data: bytes) -> bool:
    """Whether a file is a PNG with nothing in it but the pixels: no text, no Exif."""
    at = 8
    if data[:at] != b"\x89PNG\r\n\x1a\n":
        return False
    while at + 8 <= len(data):
        if data[at + 4 : at + 8] not in (b"IHDR", b"IDAT", b"IEND"):
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return at == len(data)


def save_dataset(labels: Labels, path: str | Path) -> None:
    """Write a folder (`save_to_disk`), or one file where the name ends with .parquet; whole or not at all.

    Raises:
        LabelsError: there is something under that name.
        OSError: it cannot be written.
    """
    import secrets
    import shutil

    path = Path(path)
    if path.exists():
        raise LabelsError(f"{path} is there already; give another name")
    made = to_dataset(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        if path.suffix == ".parquet":
            made.to_parquet(str(part))
        else:
            made.save_to_disk(str(part))
        part.rename(path)
    except BaseException:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        raise


def load_dataset(path: str | Path) -> Labels:
    """Labels from what `save_dataset` wrote, or another dataset with those columns. Raises LabelsError."""
    lib, path = _datasets(), Path(path)
    try:
        if path.suffix == ".parquet":
            found = lib.Dataset.from_parquet(str(path), keep_in_memory=True)
        else:
            found = lib.load_from_disk(str(path))
    except Exception as error:  # whatever the library makes of other people's files
        raise LabelsError(f"the dataset {path} cannot be read: {first_line(error)}") from error
    if not hasattr(found, "column_names") or isinstance(found.column_names, dict):
        raise LabelsError(f"{path} holds several datasets ({', '.join(found)}); give the folder of one")
    return from_dataset(found, path.name)
