"""What every document shares: frozen pydantic models without unknown fields, and one byte-stable JSON form."""

from __future__ import annotations

import json
import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from specs.errors import InputError


class DType(StrEnum):
    """Element types of weights, activations and KV cache that Capstan knows."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"
    INT4 = "int4"

    @property
    def bytes(self) -> float:
        """Bytes of one element, scales not counted."""
        return {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "int4": 0.5}[self.value]


class Frozen(BaseModel):
    """An immutable record; unknown fields are errors, NaN and infinity are not numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Document(Frozen):
    """A record that stands alone as a file."""

    def to_json(self) -> str:
        """The byte-stable form: same document, same bytes (field order as declared, two spaces, final newline)."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Write atomically: the file is the old one or the new one, never half of either."""
        write_atomically(Path(path), self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read and check a JSON document; `InputError` names the file and the field."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read ({getattr(error, 'strerror', None) or error})", file=str(path)) from None
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise InputError(f"is not JSON ({error})", file=str(path), line=line) from None
        if not isinstance(value, dict):
            raise InputError(f"holds {type(value).__name__}", file=str(path), expected=f"a {cls.__name__} document")
        if "kind" in cls.model_fields and value.get("kind") != cls.model_fields["kind"].default:
            raise InputError(
                f"is a document of kind {value.get('kind')!r}",
                file=str(path),
                field="kind",
                expected=repr(cls.model_fields["kind"].default),
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InputError(first["msg"], file=str(path), field=field) from None


def write_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename over it. `InputError` when the folder cannot be written."""
    if path.exists() and not path.is_file():  # renaming over a folder fails late, over a device it would replace it
        raise InputError("cannot be written (not a regular file)", file=str(path), expected="a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=str(path)) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise InputError(f"cannot be written ({error.strerror})", file=str(path)) from None
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
