"""The offline bundle of a study: its data, tokenizers and models as files with hashes, fetched where there is a network."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from refgeo import __version__
from refgeo.config.bundle import MANIFEST, Item, Kept, Manifest, Want, digest, in_bundle, intact, read_manifest, wanted
from refgeo.config.data import Part
from refgeo.config.locations import OFFLINE, is_url, locate
from refgeo.config.schema import Study
from refgeo.data.cells import plain
from refgeo.data.download import download, file_name
from refgeo.data.tables import load_hub
from refgeo.errors import DataError, ModelError
from refgeo.lm.origin import UNGATED
from refgeo.progress import Progress
from refgeo.study.files import disk_full, filling, storing, write_text
from refgeo.study.validate import load_sets

ROWS = "rows.parquet"
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py", "README.md"]
"""What a model needs: safetensors only, so that nothing is unpickled; and the card, in which classifiers have their prompt."""
NOT_NEEDED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "*.onnx.json"]
"""The same weights in other formats."""


def fetch(study: Study, folder: Path, progress: Progress | None = None) -> Manifest:
    """Put everything that the study reads into ``folder`` and return its manifest; ``data.bundle`` is not looked at.

    What is there already with the right hashes is kept, so an interrupted fetch goes on and a changed study adds what it needs.
    ``progress(done, total, what)`` is called before each item and at the end. Raises ``DataError`` or ``ModelError`` when something
    cannot be had, ``StoreError`` when the folder cannot be written.
    """
    wants = wanted(study)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    before = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    items = {item.want: item for item in before.items} if before is not None else {}
    manifest = Manifest(study=study.name, refgeo=__version__, items=tuple(items.values()))
    for number, want in enumerate(wants):
        if progress is not None:
            progress(number, len(wants), str(want))
        known = items.get(want)
        if known is not None and all(intact(folder / name, kept, {}) for name, kept in known.files.items()):
            continue
        items[want] = _fetched(want, folder)
        manifest = Manifest(study=study.name, refgeo=__version__, items=tuple(items.values()))
        with storing(folder):
            write_text(folder / MANIFEST, manifest.model_dump_json(indent=1, exclude_none=True) + "\n")
    if not wants or manifest != before:
        with storing(folder):
            write_text(folder / MANIFEST, manifest.model_dump_json(indent=1, exclude_none=True) + "\n")
    if progress is not None:
        progress(len(wants), len(wants), "")
    return manifest


def check_bundle(study: Study, folder: Path) -> None:
    """Read every set from the bundle, as a run there will. Raises ``DataError``: a page that asks to log in is a file like any other."""
    data = study.data.model_copy(update={"bundle": str(folder)})
    try:
        load_sets(in_bundle(study.model_copy(update={"data": data})))
    except DataError as error:
        raise DataError(
            f"Everything is in '{folder}', but no run can use it: {error}",
            fix="Correct the setting or the source, delete that file in the bundle, and fetch again",
        ) from error


def _fetched(want: Want, bundle: Path) -> Item:
    home = bundle / want.kind / _name(want)
    commit = None
    local = locate(want.path)
    if want.path.startswith("http://"):
        raise DataError(f"'{want.path}' is not a safe address", expected="https", fix="Or download the file and give its path")
    if local is None and not is_url(want.path) and want.kind == "file":
        raise DataError(f"'{want.path}' is not a local file", expected="the path of a file, or an https URL")
    if want.kind == "model" and local is None:
        commit = _model(want, home)
        place = home
    else:
        with filling(home) as empty:
            place = home / _fill(want, local, empty)
    files = sorted(file for file in home.rglob("*") if file.is_file() and not _hidden(file.relative_to(home)))
    kept = {file.relative_to(bundle).as_posix(): Kept(sha256=digest(file), bytes=file.stat().st_size) for file in files}
    return Item(want=want, place=place.relative_to(bundle).as_posix(), commit=commit, files=kept)


def _fill(want: Want, local: Path | None, folder: Path) -> str:
    """Copy or download into the empty folder; returns the name of what was made in it, ``.`` for the folder itself."""
    if is_url(want.path):
        name = file_name(want.path)
        download(want.path, folder / name)
        return name
    if local is None:
        part = Part(path=want.path, revision=want.revision, subset=want.subset, split=want.split or "train")
        load_hub(part).to_parquet(str(folder / ROWS))
        return ROWS
    try:
        if local.is_dir():
            shutil.copytree(local, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
            return "."
        shutil.copyfile(local, folder / local.name)
    except OSError as error:
        full = disk_full(error, folder)
        if full is not None:
            raise full from error
        raise DataError(f"'{want.path}' cannot be read: {error.strerror or error}", fix="Check the path in the configuration") from error
    return local.name


def _model(want: Want, home: Path) -> str | None:
    """Download a model of a hub; its own partial files make an interrupted download go on. Returns the commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    path, _, at = want.path.partition("@")
    revision = want.revision or at or None
    partial = home.with_name(f".{home.name}.part")
    try:
        commit = HfApi().model_info(path, revision=revision).sha
        snapshot_download(path, revision=commit, local_dir=partial, allow_patterns=MODEL_FILES, ignore_patterns=NOT_NEEDED)
    except hub.GatedRepoError as error:
        other = UNGATED.get(path)
        raise ModelError(
            f"The model '{path}' is gated",
            fix=f"Accept its terms at https://huggingface.co/{path}, then log in with 'hf auth login' (or set HF_TOKEN) and fetch again"
            + (f". '{other}' is a copy without a gate" if other else ""),
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise ModelError(
            f"The hub has no model '{path}'" + (f" with revision '{revision}'" if revision else ""),
            fix="Check the id and the revision; a private model needs 'hf auth login'",
        ) from error
    except hub.OfflineModeIsEnabled as error:
        raise ModelError(f"Cannot download '{path}': HF_HUB_OFFLINE is set", fix=f"Unset it. {OFFLINE}") from error
    except (OSError, ValueError, hub.HTTPError) as error:  # type: ignore[attr-defined]  # of whichever HTTP library the client uses
        full = disk_full(error, home) if isinstance(error, OSError) else None
        if full is not None:
            raise full from error
        raise ModelError(f"Cannot download the model '{path}': {error}", fix=f"Check the network and try again. {OFFLINE}") from error
    if not any(partial.rglob("*.safetensors")):
        raise ModelError(
            f"The model '{path}' has no safetensors weights",
            expected="weights that load without unpickling",
            fix="Choose a revision that has them, or convert the model and give its folder",
        )
    with storing(home):
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
    return commit


def _name(want: Want) -> str:
    """A readable folder name that two different things never share."""
    last = want.path.rstrip("/").rpartition("/")[2].partition("?")[0]
    words = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in plain(last).rpartition(".")[0] or plain(last))
    return f"{words[:40].strip('-') or 'item'}-{hashlib.sha256(want.model_dump_json().encode()).hexdigest()[:8]}"


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
