"""An offline bundle: which files a study needs, where a bundle holds them, and the study that reads them there.

``refgeo fetch`` writes a bundle; a study with ``data.bundle`` is rewritten by ``in_bundle`` before anything is loaded, so that no
loader needs to know of bundles.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from refgeo.config.attack import ProbeSettings
from refgeo.config.autodan import AutoDANSettings
from refgeo.config.data import DataSettings, Part
from refgeo.config.judge import OneJudgeSettings
from refgeo.config.locations import is_url, local_path, locate
from refgeo.config.model import ModelSettings
from refgeo.config.reading import parse_json
from refgeo.config.schema import Study
from refgeo.config.section import Section
from refgeo.errors import DataError

MANIFEST = "manifest.json"
VERIFIED = ".verified.json"
"""Large files whose hash was right, by size and modification time, so that 14 GB of weights are not read at every command."""
LARGE = 1 << 24
FILES: dict[type[Section], tuple[str, ...]] = {
    Part: ("targets",),
    DataSettings: ("filler",),
    ModelSettings: ("chat_template",),
    OneJudgeSettings: ("refusals", "grammar", "template", "score_template"),
    AutoDANSettings: ("seeds", "synonyms"),
}
"""Settings that name a file."""
MODELS: dict[type[Section], tuple[str, ...]] = {
    ModelSettings: ("adapter",),
    ProbeSettings: ("draft",),
    AutoDANSettings: ("paraphraser",),
}
"""Settings that name a model, beside the sections that describe one."""


class Want(BaseModel):
    """Something that a study reads: the rows of a set, a file, or a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["data", "file", "model"]
    path: str
    revision: str | None = None
    subset: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        details = ", ".join(f"{name} {value}" for name in ("revision", "subset", "split") if (value := getattr(self, name)))
        return f"{self.kind} '{self.path}'" + (f" ({details})" if details else "")


class Kept(BaseModel):
    """Hash and size of one file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


def _inside(name: str) -> str:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise ValueError(f"'{name[:200]}' leads out of the bundle")
    return name


Inside = Annotated[str, AfterValidator(_inside)]
"""A path that stays inside the bundle."""


class Item(BaseModel):
    """One thing that a bundle holds: ``place`` is its file or folder inside the bundle, ``files`` are relative to the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    want: Want
    place: Inside
    commit: str | None = None
    files: dict[Inside, Kept]


class Manifest(BaseModel):
    """What a bundle holds, and what made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    study: str
    refgeo: str
    items: tuple[Item, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(kept.bytes for item in self.items for kept in item.files.values())

    def find(self, want: Want) -> Item | None:
        """The item for ``want``."""
        return next((item for item in self.items if item.want == want), None)


def wanted(study: Study) -> list[Want]:
    """Everything that the study reads, each once, in the order of the configuration."""
    found: dict[Want, None] = {}

    def note(want: Want) -> str:
        found[want] = None
        return want.path

    _walk(_explicit(study), note)
    return list(found)


def in_bundle(study: Study) -> Study:
    """The study with every path inside its bundle (``data.bundle``), all hashes checked; the study itself when it names none.

    Applying it again changes nothing. Raises ``DataError`` when the bundle lacks something or a file was changed.
    """
    if study.data.bundle is None:
        return study
    bundle = local_path(study.data.bundle)
    manifest = read_manifest(bundle)
    verify(bundle, manifest)

    def place(want: Want) -> str:
        inside = locate(want.path)
        if inside is not None and inside.absolute().is_relative_to(bundle.absolute()):
            return want.path
        return str(locate_in_bundle(bundle, want, manifest))

    found: Study = _walk(_explicit(study), place)
    return found


def locate_in_bundle(bundle: Path, want: Want, manifest: Manifest | None = None) -> Path:
    """File or folder that a bundle holds for ``want``. Raises ``DataError`` naming what it holds when this is not there."""
    manifest = read_manifest(bundle) if manifest is None else manifest
    item = manifest.find(want)
    if item is None:
        held = "; ".join(str(other.want) for other in manifest.items if other.want.kind == want.kind) or "nothing of this kind"
        raise DataError(
            f"The bundle '{bundle}' does not hold {want}. It holds: {held}",
            fix="Run 'refgeo fetch' with the same settings and the same folder: it adds what is missing",
        )
    return (bundle / item.place).absolute()


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle. Raises ``DataError`` when the folder is none."""
    file = bundle / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"'{file}' is not the manifest of a bundle: {error}", fix="Fetch into an empty folder") from error
    except OSError as error:
        raise DataError(
            f"'{bundle}' is no bundle: {error.strerror or error}: '{file}'",
            expected=f"a folder with {MANIFEST}",
            fix="Make it with 'refgeo fetch STUDY -o DIR' where there is a network",
        ) from error
    except ValidationError as error:
        raise DataError(
            f"'{file}' is not the manifest of a bundle: {error.errors()[0]['msg']}", fix="Fetch into an empty folder"
        ) from error


def verify(bundle: Path, manifest: Manifest) -> None:
    """Raise ``DataError`` naming every file of the bundle that is missing or has another content than when it was fetched."""
    known = _remembered(bundle)
    before = dict(known)
    bad = [name for item in manifest.items for name, kept in item.files.items() if not intact(bundle / name, kept, known)]
    if bad:
        shown = ", ".join(f"'{name}'" for name in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise DataError(
            f"The bundle '{bundle}' was changed: {shown} missing or not as fetched",
            expected=f"the content that {MANIFEST} has the hash of",
            fix="Fetch again into the same folder; use data.KEY.path for a file of your own",
        )
    if known != before:
        try:
            partial = bundle / f"{VERIFIED}.{os.getpid()}"
            partial.write_text(json.dumps(known, indent=0), encoding="utf-8")
            partial.replace(bundle / VERIFIED)  # not through it, should it be a link
        except OSError:  # A bundle on a read-only disk is checked in full each time.
            return


def intact(file: Path, kept: Kept, known: dict[str, str]) -> bool:
    """Whether a file has its recorded content. ``known`` remembers the hashes of large files, and learns them."""
    try:
        facts = file.stat()
        if facts.st_size != kept.bytes:
            return False
        key = f"{file.name}|{facts.st_size}|{facts.st_mtime_ns}"
        if known.get(key) == kept.sha256:
            return True
        right = digest(file) == kept.sha256
    except OSError:
        return False
    if right and facts.st_size >= LARGE:
        known[key] = kept.sha256
    return right


def digest(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remembered(bundle: Path) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in parse_json((bundle / VERIFIED).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _explicit(study: Study) -> Study:
    """The study with the published weights of its judges written out."""
    judge, second = study.judge, study.judge.second
    written: dict[str, Any] = {**judge.models}
    if second is not None:
        written["second"] = second.model_copy(update=second.models)
    return study.model_copy(update={"judge": judge.model_copy(update=written)})


def _walk(section: Any, place: Callable[[Want], str]) -> Any:
    """The section with every path replaced by what ``place`` says of it."""
    changes: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Section):
            changes[name] = _walk(value, place)
        elif isinstance(value, tuple) and any(isinstance(inner, Section) for inner in value):
            changes[name] = tuple(_walk(inner, place) for inner in value)
        elif isinstance(value, str) and name in _named(section, FILES) and "{" not in value:  # a chat template may be written out
            changes[name] = place(Want(kind="file", path=value))
        elif isinstance(value, str) and name in _named(section, MODELS):
            revision = section.adapter_revision if isinstance(section, ModelSettings) else None
            changes[name] = place(Want(kind="model", path=value, revision=revision))
    if isinstance(section, Part):
        local = locate(section.path)
        of_hub = {"revision": section.revision, "subset": section.subset}
        # Rows of a local file do not depend on the split; those of a local dataset folder do, and it is copied whole.
        changes["path"] = place(
            Want(kind="data", path=section.path)
            if local is not None or is_url(section.path)
            else Want(kind="data", path=section.path, split=section.split, **of_hub)
        )
    elif isinstance(section, ModelSettings):
        changes["path"] = place(Want(kind="model", path=section.path, revision=section.revision))
    return section.model_copy(update=changes)


def _named(section: Section, names: dict[type[Section], tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for kind, found in names.items() if isinstance(section, kind) for name in found)
