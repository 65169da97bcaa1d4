"""All exceptions that the two packages raise on purpose.

    FeatureCacheError                 the root; `exit_code` is 2 unless noted
    ├── ClipListError                 the clip list: missing, malformed, duplicate or escaping
    ├── DatasetError                  a dataset's folder or an importer's option is not what the importer expects
    ├── MediaError                    one clip's media cannot be decoded (recorded, never fatal in extraction)
    ├── EncoderError                  unknown encoder, or an option it does not have
    ├── WeightsError                  weights missing, incomplete or of another architecture
    ├── ProjectError                  the project file featurecache.toml
    ├── MissingExtraError             packages of an extra are not installed; `pip install` with the extra adds them
    ├── BrokenPackageError            an installed package of another project cannot be imported
    ├── SpreadsheetError              a file is not an xlsx workbook
    ├── SpecError                     a malformed spec
    ├── StoreError                    a store on disk
    │   ├── StoreNotFoundError        no store, or no such feature in it
    │   ├── FingerprintError          stored tokens were made by another spec or from other media
    │   ├── MissingFeatureError       (also KeyError) clips without tokens; lists the reason per clip
    │   ├── CorruptStoreError         bytes contradict their checksum or record         exit code 1
    │   └── WriteError                the disk is full or refuses                       exit code 1
    └── FusionTrainError              (in fusion_train.errors) all errors of the trainer

Message template: `subject: expected X, got Y. Next step.` The subject is a clip id, a shard or a config key.
The library raises; only the command lines print errors and exit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from featurecache.outside_text import one_line

MAX_LISTED_PROBLEMS = 20
MAX_SUGGESTED_AMONG = 10_000


class FeatureCacheError(Exception):
    """A problem that the user can solve, in the form `subject: expected X, got Y. Next step.`"""

    exit_code = 2

    def __init__(
        self,
        subject: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        next_step: str | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        self.subject = subject
        self.expected = expected
        self.got = got
        self.next_step = next_step
        self.problems = list(problems)
        super().__init__(self._message())

    def _message(self) -> str:
        clauses = [f"expected {one_line(self.expected)}"] if self.expected else []
        if self.got:
            clauses.append(f"got {one_line(self.got)}" if self.expected else one_line(self.got))
        line = one_line(self.subject) + (": " + ", ".join(clauses) if clauses else "")
        if not line.endswith((".", "?", "!")):
            line += "."
        if self.next_step:
            line += " " + one_line(self.next_step)
        listed = [f"\n  {one_line(problem)}" for problem in self.problems[:MAX_LISTED_PROBLEMS]]
        if len(self.problems) > MAX_LISTED_PROBLEMS:
            listed.append(f"\n  … and {len(self.problems) - MAX_LISTED_PROBLEMS} more")
        return line + "".join(listed)

    def __str__(self) -> str:  # MissingFeatureError is also a KeyError, whose str() is the repr() of the message
        return self._message()


class ClipListError(FeatureCacheError):
    """The clip list is missing or malformed, has a duplicate, or names a file outside its folder."""


class DatasetError(FeatureCacheError):
    """A dataset's folder does not have the layout or the labels that its importer reads."""


class MediaError(FeatureCacheError):
    """One clip's media cannot be decoded; extraction records it as failed and goes on."""

    exit_code = 1


class EncoderError(FeatureCacheError):
    """An encoder that is not registered, or an option that it does not have."""


class WeightsError(FeatureCacheError):
    """Weights that are missing, incomplete, or of another architecture."""


class ProjectError(FeatureCacheError):
    """The project file `featurecache.toml` is no TOML, or has unknown keys or values of another kind."""


class MissingExtraError(FeatureCacheError):
    """A command needs packages that are not installed; `pip install` with the extra adds them."""


class BrokenPackageError(FeatureCacheError):
    """An installed package of another project cannot be imported, such as a torchvision built for another torch."""


class SpreadsheetError(FeatureCacheError):
    """A file is not an xlsx workbook."""


class SpecError(FeatureCacheError):
    """A spec that cannot be read or is incomplete."""


class StoreError(FeatureCacheError):
    """A problem with a store on disk."""


class StoreNotFoundError(StoreError):
    """There is no store at the location, or no such feature in the store."""


class FingerprintError(StoreError):
    """Stored tokens were made by another spec or from other media than the requested ones."""


class MissingFeatureError(StoreError, KeyError):
    """Clips whose tokens are absent, failed or not extracted; `clip_ids` lists them."""

    def __init__(self, subject: str, *, clip_ids: Sequence[str], **message: Any) -> None:
        self.clip_ids = list(clip_ids)
        super().__init__(subject, **message)


class CorruptStoreError(StoreError):
    """Stored bytes contradict their checksum, index or commit record."""

    exit_code = 1


class WriteError(StoreError):
    """The disk is full or refuses to write; earlier commits are untouched."""

    exit_code = 1


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the nearest of `known`, or an empty string.

    More than `MAX_SUGGESTED_AMONG` names are not compared: that would take a minute.
    """
    names = list(islice(known, MAX_SUGGESTED_AMONG + 1))
    if len(names) > MAX_SUGGESTED_AMONG:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""
