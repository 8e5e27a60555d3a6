"""Small config files of the repositories that a diffusion branch came from.

The official ``config.json`` only names them (``sd_model_id``). Where such a folder lies beside the
checkpoint, its files are written into the parsed config: everything behind reads one object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionllm_edge.runtime.errors import CheckpointError

__all__ = ["with_side_files"]

# Files of a side repository, by the object they stand for.
_SIDE_FILES = {
    "unet_config": "unet/config.json",
    "vae_config": "vae/config.json",
    "text_encoder_config": "text_encoder/config.json",
    "scheduler_config": "scheduler/scheduler_config.json",
}


def with_side_files(data: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A checkpoint's ``config.json`` with what its side repositories say written into it.

    A branch names its repository in ``sd_model_id``. It is looked for as that path inside the
    checkpoint's folder, and by its last name inside and beside that folder; it may be missing.
    Objects that the section has of its own stay.

    Args:
        data: the parsed ``config.json``.
        folder: of the checkpoint.

    Raises:
        CheckpointError: a file of a side repository is not valid JSON.
    """
    out = dict(data)
    for name in ("sd_config", "ip2p_config"):
        section = data.get(name)
        if not isinstance(section, Mapping):
            continue
        place = _side_folder(section.get("sd_model_id"), folder)
        if place is not None:
            out[name] = _read_side_files(place) | dict(section)
    return out


def _side_folder(model_id: object, folder: Path) -> Path | None:
    if not isinstance(model_id, str) or not model_id.strip("/."):
        return None
    inside = Path(model_id)
    places = [folder / inside.name, folder.resolve().parent / inside.name]
    if not inside.is_absolute() and ".." not in inside.parts:
        places.insert(0, folder / inside)
    return next((place for place in places if (place / "unet").is_dir()), None)


def _read_side_files(place: Path) -> dict[str, Any]:
    found = {}
    for name, relative in _SIDE_FILES.items():
        path = place / relative
        if path.is_file():
            try:
                found[name] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as e:  # not JSON, not UTF-8
                raise CheckpointError(
                    f"side repository '{place.name}': {relative} is not valid JSON: {e}. "
                    "Restore the file, or take the folder away to use the public values."
                ) from e
    return found
