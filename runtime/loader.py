"""Weights from safetensors files into the slots of a program: this rank's part only, in the program's types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from runtime.config import torch_dtype
from specs.errors import InputError, nearest_names
from specs.program import ProgramManifest, WeightPart, WeightSlot

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
STORED = ("F64", "F32", "F16", "BF16")  # element types that are weights as they stand
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DERIVED = (".rotary_emb.inv_freq", ".masked_bias")  # buffers that older versions wrote; the config gives them
SCALES = ("_scale", "_scale_inv", "_scales", ".scales", "_zero_point", ".qzeros", ".qweight", ".g_idx")


class Checkpoint:
    """The tensors of a model directory: one file, or shards with an index. Use as a context manager."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._place = _places(self.directory)  # tensor -> file
        try:
            for file in sorted(set(self._place.values())):
                self._check_names(file)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def _check_names(self, file: str) -> None:
        """A shard holds what the index says of it, or a reader could not tell which of two tensors is meant."""
        for name in self._open(self.directory / file).keys():  # noqa: SIM118 - no mapping
            elsewhere = self._place.get(name)
            if elsewhere is None and not name.endswith(DERIVED):
                raise InputError(f"holds tensor {name!r}, which {INDEX} does not name", file=str(self.directory / file))
            if elsewhere not in (None, file):
                raise InputError(
                    f"holds tensor {name!r}, which {INDEX} places in {elsewhere}", file=str(self.directory / file)
                )

    def check_model(self, manifest: ProgramManifest) -> None:
        """`InputError` for a tensor that is missing, or that the program does not read: another model's checkpoint.

        What the config alone gives (rotary frequencies) may be there, and so may the copy of a tied head.
        """
        claimed = {part.checkpoint_name for slot in manifest.slots for part in slot.parts}
        for name in sorted(claimed - self._place.keys()):
            raise InputError(
                f"tensor {name!r} is missing from the checkpoint",
                file=str(self.directory),
                nearest=nearest_names(name, self._place, 2),
            )
        for name in sorted(self._place.keys() - claimed):
            if name.endswith(DERIVED) or (name == HEAD and self._is_copied_head()):
                continue
            reason = "has no place in the model that config.json describes"
            if name == HEAD:
                reason = f"is neither the model's (tie_word_embeddings) nor a copy of {EMBEDDING!r}"
            elif name.endswith(SCALES):
                reason += "; quantised checkpoints are not served in this version"
            raise InputError(f"tensor {name!r} {reason}", file=str(self.directory / self._place[name]))

    def _is_copied_head(self) -> bool:
        if EMBEDDING not in self._place:
            return False
        head, table = (self._open(self.directory / self._place[name]).get_tensor(name) for name in (HEAD, EMBEDDING))
        return bool(head.dtype == table.dtype and torch.equal(head, table))

    def part(self, part: WeightPart, rank: int, ranks: int) -> torch.Tensor:
        """This rank's piece of one tensor. `InputError` names tensor and file where it contradicts the config."""
        name = part.checkpoint_name
        path = self.directory / self._place[name]
        try:
            tensor = self._open(path).get_slice(name)
            if tensor.get_dtype() not in STORED:
                raise InputError(
                    f"tensor {name!r} is stored as {tensor.get_dtype()}; quantised checkpoints are not served in this "
                    "version",
                    file=str(path),
                    expected=f"one of {', '.join(STORED)}",
                )
            shape = tuple(tensor.get_shape())
            if shape != part.shape:
                raise InputError(
                    f"tensor {name!r} has shape {shape}, which contradicts the model's config",
                    file=str(path),
                    expected=f"{part.shape}",
                )
            return _cut(tensor, part, rank, ranks)
        except SafetensorError as error:
            raise InputError(f"tensor {name!r} cannot be read ({error})", file=str(path)) from None

    def _open(self, path: Path) -> Any:
        key = path.name
        if key not in self._files:
            try:
                self._files[key] = self._stack.enter_context(safe_open(str(path), framework="pt"))
            except FileNotFoundError:
                raise InputError("is missing", file=str(path), expected=f"the shard that {INDEX} names") from None
            except (SafetensorError, OSError) as error:
                raise InputError(f"is no readable safetensors file ({error})", file=str(path)) from None
        return self._files[key]


def load_weights(
    directory: str | Path, manifest: ProgramManifest, device: torch.device, *, rank: int = 0
) -> dict[str, torch.Tensor]:
    """Slot name -> this rank's tensor on `device`. `InputError` where the files do not hold exactly the model."""
    with Checkpoint(directory) as checkpoint:
        checkpoint.check_model(manifest)
        return {slot.name: _fill(slot, checkpoint, rank, manifest.tensor_parallel, device) for slot in manifest.slots}


def _fill(slot: WeightSlot, checkpoint: Checkpoint, rank: int, ranks: int, device: torch.device) -> torch.Tensor:
    """Copied part by part into place, so that the peak is one slot and one part."""
    target = torch.empty(slot.shape, dtype=torch_dtype(slot.dtype), device=device)
    parts = (checkpoint.part(part, rank, ranks) for part in slot.parts)
    if slot.pack == "stack":
        rows = iter(parts)
        for index in range(slot.shape[0]):
            _concat(target[index], [next(rows) for _ in range(slot.group)], slot)
        return target
    _concat(target, parts, slot)
    return target


def _concat(target: torch.Tensor, parts: Iterable[torch.Tensor], slot: WeightSlot) -> None:
    row = 0
    for part in parts:
        if part.shape[1:] != target.shape[1:] or row + part.shape[0] > target.shape[0]:
            raise InputError(f"a part of shape {tuple(part.shape)} does not fit {slot.shape}", field=slot.name)
        target[row : row + part.shape[0]].copy_(part)
        row += part.shape[0]
    if row != target.shape[0]:
        raise InputError(f"its parts fill {row} of {target.shape[0]} rows", field=slot.name)


def _cut(tensor: Any, part: WeightPart, rank: int, ranks: int) -> torch.Tensor:
    """Only the rows or columns of this rank are read; what is missing to equal sizes (vocabulary) is zeros."""
    axis = part.shard_axis
    if axis is None or ranks == 1:
        return tensor[:]  # type: ignore[no-any-return]
    before = (slice(None),) * axis
    pieces = [tensor[(*before, slice(low, high))] for low, high in part.rank_slices(rank, ranks)]
    missing = list(part.rank_shape(ranks))
    missing[axis] -= sum(piece.shape[axis] for piece in pieces)
    if missing[axis]:
        pieces.append(pieces[0].new_zeros(missing))
    return torch.cat(pieces, dim=axis) if len(pieces) > 1 else pieces[0]


def _places(directory: Path) -> dict[str, str]:
    """Tensor name -> file name. `InputError` where the directory holds no safetensors checkpoint."""
    index = directory / INDEX
    if index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            places = {str(name): str(file) for name, file in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"is no index of shards ({error})", file=str(index), expected="weight_map") from None
        for file in sorted(set(places.values())):
            if Path(file).name != file:
                raise InputError(f"names {file!r} outside the directory", file=str(index), expected="plain file names")
            if not (directory / file).is_file():
                raise InputError("is missing", file=str(directory / file), expected=f"the shard that {INDEX} names")
        if (directory / SINGLE).exists() and SINGLE not in places.values():
            raise InputError(
                f"stands beside {INDEX}, which does not name it",
                file=str(directory / SINGLE),
                expected="one of the two: the whole checkpoint, or the index and its shards",
            )
        return places
    single = directory / SINGLE
    if not single.exists():
        raise InputError("holds no weights", file=str(directory), expected=f"{SINGLE}, or shards and {INDEX}")
    try:
        with safe_open(str(single), framework="pt") as opened:
            return dict.fromkeys(opened.keys(), SINGLE)
    except (SafetensorError, OSError) as error:
        raise InputError(f"is no readable safetensors file ({error})", file=str(single)) from None
