"""Checkpoints of a run: the newest three and the best, so that one of them is whole whatever happens and whenever.

How a save goes, and why a kill between any two of its operations does no harm:

1. The new file is written under a temporary name, hashed on the way, and synced. Until here only a hidden file is new.
2. Its manifest is written as `lm_next.manifest.json`. From here on the new content is vouched for under any name.
3. Second names (hard links; copies where the file system has none) of all that moves are prepared under temporary names:
   whatever takes space happens before anything is renamed.
4. Renames: the best, `lm_prev2` (what `lm_prev` holds), `lm_prev` (what `lm_current` holds), `lm_current` (the new one),
   the mirror. No name is ever absent, and after each rename `lm_current` is at least as new as `lm_prev`, and that as
   `lm_prev2`. All manifests of step 2 are still there, so each of these files is vouched for. The best goes first: a run
   that resumes from the old `lm_current` comes by it again, while a best one that its state counts as saved must be there.
5. The manifests follow their files, oldest first: a manifest is overwritten only when its file is gone, or when it was
   already written under the new name. Then `lm_next.manifest.json` is removed.

6. Where tensors are held in parts by several processes, these were written before step 1 (see `shards`); now the folders of
   parts that no manifest names any more are removed.

A kill in step 5 leaves `lm_next.manifest.json`; `clean` and the next save finish the step, from the files' content.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import torch

from lmloop import durable
from lmloop.training.manifest import Manifest, manifest_path, read_manifest, read_manifests
from lmloop.training.shards import Unusable, join, load_plain, remove_unnamed
from lmloop.training.soundness import check_finite, check_plain, tensor_bytes

FORMAT = 2
"""Of the dictionary in a checkpoint. 2: the position in the data is one for each part of a source."""

CURRENT = "lm_current.pth"
PREVIOUS = "lm_prev.pth"
PREVIOUS_2 = "lm_prev2.pth"
BEST = "lm_best.pth"
MIRROR = "simple_lm_trained.pth"
PINNED = "lm_pinned.pth"
"""What an epoch began with, where it may be taken back."""
NEWEST_FIRST = (CURRENT, PREVIOUS, PREVIOUS_2)
_NEXT = "lm_next.pth"


class CheckpointError(ValueError):
    """Nothing that is there can be loaded; the message names the files and why."""


class CheckpointWriteError(OSError):
    """A save failed (full disk, I/O error). What was saved before is intact and no temporary is left."""

    def __str__(self) -> str:
        return self.strerror or ""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was verified and read. `notices` says, a line each, which newer files were passed over and why."""

    state: dict[str, Any]
    path: Path
    manifest: Manifest
    notices: list[str]

    @property
    def small_state(self) -> dict[str, Any]:
        """The state without model and optimizer: what every rank needs of it at once."""
        return {key: value for key, value in self.state.items() if key not in ("model", "optimizer")}


class CheckpointStore:
    """The checkpoints in one run folder. Whoever saves or cleans holds the folder's `RunLock`; reading needs no lock."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._next_manifest = manifest_path(run_dir / _NEXT)
        self._prepared = durable.temporary(run_dir / _NEXT)
        # SHA-256 of files hashed by this object, by what changes when a file does: so that each is read at most once.
        self._digests: dict[tuple[int, int, int], str] = {}

    # ---- saving ----

    def save(
        self, state: dict[str, Any], *, step: int, tokens: int, preset_hash: str, best: bool = False, shards: str = ""
    ) -> Manifest:
        """Make `state` the newest checkpoint, and the best one if `best`; the two before it are kept.

        shards: the folder of the parts that belong to it, which are on the disk already.

        `state['model']` and `state['optimizer']` must be finite (NonFiniteError), everything in `state` a tensor or a plain
        value (AssertionError). Saving the step of the current checkpoint again replaces it and drops no older one; a damaged
        file is never kept in place of a good one. The first save of a process reads the older files once, to know them.
        CheckpointWriteError: the disk failed; training may go on and try again.
        """
        check_plain(state)
        check_finite(state, step)
        need_bytes = tensor_bytes(state)
        targets = (BEST, PREVIOUS_2, PREVIOUS, MIRROR)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            try:
                with durable.removed_on_error(self._prepared, *(durable.temporary(self.run_dir / name) for name in targets)):
                    self._settle()
                    manifest = self._write_next(state, step, tokens, preset_hash, need_bytes, shards)
                    self._rotate(step, best)
                self._settle()
            except BaseException:
                # If the disk lets us, the manifests are put in order at once, else by the next save or `clean`.
                with contextlib.suppress(OSError):
                    self._settle()
                raise
        except OSError as error:
            raise self._write_error(error, step, need_bytes) from error
        self.remove_unnamed_parts()
        return manifest

    def _write_next(
        self, state: dict[str, Any], step: int, tokens: int, preset_hash: str, need_bytes: int, shards: str
    ) -> Manifest:
        """Steps 1 and 2: the new file under its temporary name, and its manifest."""
        durable.unlink(self._prepared)  # a leftover's space is free again before free space is compared
        durable.require_space(self.run_dir, need_bytes)
        with durable.HashingFile(self._prepared) as file:
            torch.save(state, cast(IO[bytes], file))  # all it needs of a file is `write`
        self._remember(self._prepared, file.sha256)
        manifest = Manifest(
            sha256=file.sha256,
            bytes=file.bytes_written,
            step=step,
            tokens=tokens,
            preset_hash=preset_hash,
            saved=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            torch=str(torch.__version__),
            shards=shards,
        )
        durable.atomic_write(self._next_manifest, manifest.to_json())
        return manifest

    def _rotate(self, step: int, best: bool) -> None:
        """Steps 3 and 4: everything gets its place; order as in the module's description."""
        manifests = read_manifests(self.run_dir)
        current, previous = (self._identify(self.run_dir / name, manifests) for name in (CURRENT, PREVIOUS))
        moves = [(self._prepared, BEST)] if best else []
        # What `lm_current` holds moves down unless it is damaged, of this very step, or there already (an earlier save
        # that failed half-way): in none of these cases may it push out an older good one.
        if current is not None and current.step != step and current != previous:
            if previous is not None:
                moves.append((self.run_dir / PREVIOUS, PREVIOUS_2))
            moves.append((self.run_dir / CURRENT, PREVIOUS))
        for source, name in (*moves, (self._prepared, MIRROR)):
            second_name = durable.temporary(self.run_dir / name)
            durable.link_or_copy(source, second_name)
            self._remember(second_name, self._digest(source))

        for _, name in moves:
            durable.replace(durable.temporary(self.run_dir / name), self.run_dir / name)
            if name == BEST:
                durable.fsync_dir(self.run_dir)
        durable.replace(self._prepared, self.run_dir / CURRENT)
        durable.replace(durable.temporary(self.run_dir / MIRROR), self.run_dir / MIRROR)
        durable.fsync_dir(self.run_dir)

    def _settle(self) -> None:
        """Step 5, also of an earlier save that did not come to its end: each file gets its own manifest."""
        if not self._next_manifest.exists():
            return
        manifests = read_manifests(self.run_dir)
        for name in (BEST, PREVIOUS_2, PREVIOUS, CURRENT):
            path = self.run_dir / name
            manifest = self._identify(path, manifests)
            if manifest is not None and read_manifest(manifest_path(path)) != manifest:
                durable.atomic_write(manifest_path(path), manifest.to_json())
        durable.unlink(self._next_manifest)
        durable.fsync_dir(self.run_dir)

    def clean(self) -> list[Path]:
        """Remove what a killed process left in the folder, and finish its save if all files were in place.

        Only under the lock. Returns what was removed. A full disk can put the finishing off to the next save.
        """
        removed = durable.leftovers(self.run_dir)
        for path in removed:
            durable.unlink(path)
        with contextlib.suppress(OSError):
            self._settle()
        return removed + self.remove_unnamed_parts()

    def remove_unnamed_parts(self) -> list[Path]:
        """Step 6. Returns what was removed; what the disk does not let go stays for the next time."""
        named = {manifest.shards for manifest in read_manifests(self.run_dir).values()}
        for path in (self.run_dir / name for name in (*NEWEST_FIRST, BEST)):
            if path.exists() and read_manifest(manifest_path(path)) is None:  # it may be put back
                with contextlib.suppress(OSError, Unusable), path.open("rb") as stream:
                    named.add(_load_verified(stream).get("shards", {}).get("folder", ""))
        return remove_unnamed(self.run_dir, named)

    def _write_error(self, error: OSError, step: int, need_bytes: int) -> CheckpointWriteError:
        where = Path(error.filename).name if isinstance(error.filename, str | os.PathLike) else CURRENT
        free = durable.free_bytes(self.run_dir)
        free_text = "free space unknown" if free is None else f"{free:,} bytes free"
        return CheckpointWriteError(
            error.errno,
            f"{self.run_dir}: the checkpoint of step {step} was not saved: {error.strerror or error} ({where}; needs about "
            f"{need_bytes:,} bytes, {free_text}); earlier checkpoints are intact",
        )

    def pin(self) -> None:
        """Keep what is the newest checkpoint now until the next one is pinned. OSError."""
        current, pinned = self.run_dir / CURRENT, self.run_dir / PINNED
        manifest = self._identify(current, read_manifests(self.run_dir))
        if manifest is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(current))
        prepared = durable.temporary(pinned)
        with durable.removed_on_error(prepared):
            durable.link_or_copy(current, prepared)
            durable.replace(prepared, pinned)
        self._remember(pinned, manifest.sha256)
        # In between the manifest of the current one vouches for it, which has the same content.
        durable.atomic_write(manifest_path(pinned), manifest.to_json())

    # ---- loading ----

    def load_pinned(self, step: int) -> dict[str, Any] | None:
        """The state that was pinned at `step`; None where there is none, or none that can be used."""
        try:
            state, manifest = self._read(self.run_dir / PINNED)
        except (FileNotFoundError, Unusable):
            return None
        return state if manifest.step == step else None

    def load(self, which: Literal["newest", "best"] = "newest") -> Loaded | None:
        """The newest checkpoint, or the best one (the newest, where no best one was saved), with tensors on the CPU.

        Content is verified against the manifests before it is read, and reading never runs code. A file that cannot be used
        is passed over with a notice, in the order current, prev, prev2 (which is from new to old at every moment of a save),
        and best last.
        None: there is no checkpoint. CheckpointError: there are some, and none can be used.
        """
        names = (*NEWEST_FIRST, BEST) if which == "newest" else (BEST, *NEWEST_FIRST)
        refused: list[tuple[str, str]] = []
        for name in names:
            try:
                state, manifest = self._read(self.run_dir / name)
            except FileNotFoundError:
                continue
            except Unusable as reason:
                refused.append((name, str(reason)))
                continue
            notices = [
                f"WARNING: {self.run_dir / bad} is not used: {reason}; loaded {name} of step {manifest.step} instead"
                for bad, reason in refused
            ]
            if name != names[0] and not refused and which == "newest":
                notices = [f"WARNING: {self.run_dir / CURRENT} is missing; loaded {name} of step {manifest.step} instead"]
            return Loaded(state, self.run_dir / name, manifest, notices)
        refused = refused or self._unknown_files()
        if refused:
            names_of: dict[str, list[str]] = {}
            for name, reason in refused:
                names_of.setdefault(reason, []).append(name)
            reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in names_of.items())
            raise CheckpointError(
                f"{self.run_dir}: no checkpoint can be used ({reasons}): put back good copies with their manifests, "
                "or move these files away to start anew"
            )
        return None

    def _unknown_files(self) -> list[tuple[str, str]]:
        """Files, where none of the newest three is, that a first save would overwrite though no save of ours wrote them."""
        manifests = read_manifests(self.run_dir)
        paths = [path for path in (self.run_dir / BEST, self.run_dir / MIRROR) if path.exists()]
        return [(path.name, _why_unknown(path)) for path in paths if self._identify(path, manifests) is None]

    def _read(self, path: Path) -> tuple[dict[str, Any], Manifest]:
        """Verify and load one file; Unusable with the reason, FileNotFoundError if there is none."""
        reason = ""
        try:
            for _ in range(5):
                # Reading takes no lock, and a trainer may rotate meanwhile: manifests are read before and after the content
                # (which is one, once opened), and a name that has moved on to other content is read again.
                manifests = read_manifests(self.run_dir)
                with path.open("rb") as stream:
                    identity = _identity(os.fstat(stream.fileno()))
                    digest = durable.hash_stream(stream)
                    manifest = (manifests | read_manifests(self.run_dir)).get(digest)
                    if manifest is not None:
                        self._digests[identity] = digest
                        stream.seek(0)
                        state = _load_verified(stream)
                        try:
                            return (join(self.run_dir, state) if "shards" in state else state), manifest
                        except FileNotFoundError as error:
                            reason = f"its part {error.filename} is missing"
                if _identity(path.stat()) == identity:
                    break
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unusable(f"it cannot be read ({error.strerror})") from error
        raise Unusable(reason or _why_unknown(path))

    # ---- what is known about files ----

    def _identify(self, path: Path, manifests: dict[str, Manifest]) -> Manifest | None:
        """The manifest that vouches for the content of `path`; None if none does or it cannot be read."""
        try:
            return manifests.get(self._digest(path))
        except OSError:
            return None

    def _digest(self, path: Path) -> str:
        """SHA-256 of the content of `path`, read only if this object has not yet. OSError."""
        with path.open("rb") as stream:
            identity = _identity(os.fstat(stream.fileno()))
            if identity not in self._digests:
                self._digests[identity] = durable.hash_stream(stream)
            return self._digests[identity]

    def _remember(self, path: Path, digest: str) -> None:
        self._digests[_identity(path.stat())] = digest


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _load_verified(stream: Any) -> dict[str, Any]:
    """The state in a file whose content a manifest vouches for; Unusable if it is none of ours all the same."""
    state = load_plain(stream)
    if isinstance(state, dict) and state.get("format", FORMAT) != FORMAT:
        raise Unusable(f"it has format {state['format']}, this version reads format {FORMAT}: use the version that wrote it")
    if not isinstance(state, dict) or "model" not in state:
        raise Unusable("it is not a checkpoint of this program: it has no 'model'")
    return state


def _why_unknown(path: Path) -> str:
    """Why no manifest vouches for the content of `path`."""
    manifest = read_manifest(manifest_path(path))
    if manifest is None:
        problem = "damaged" if manifest_path(path).exists() else "missing"
        return f"its manifest {manifest_path(path).name} is {problem}, so that nothing vouches for its content"
    present = path.stat().st_size
    if present != manifest.bytes:
        return f"it has {present:,} bytes, its manifest says {manifest.bytes:,}"
    return "its content has changed since it was saved (its SHA-256 is not the manifest's)"
