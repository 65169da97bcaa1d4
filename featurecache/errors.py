"""Every exception that either package raises on purpose.

    FeatureCacheError                 the root; `exit_code` 2 unless said otherwise
    ├── ClipListError                 the clip list: missing, malformed, duplicate or escaping
    ├── DatasetError                  a dataset's folder is not as its importer expects, or an importer is asked wrongly
    ├── MediaError                    one clip's media cannot be decoded (recorded, never fatal in extraction)
    ├── EncoderError                  unknown encoder, or an option it does not have
    ├── WeightsError                  weights missing, incomplete or of another architecture
    ├── MissingExtraError             packages that only some commands need, `pip install` with the extra brings them
    ├── BrokenPackageError            a package of another project is installed and cannot be imported
    ├── SpreadsheetError              a file is no xlsx workbook
    ├── SpecError                     a malformed spec
    ├── StoreError                    a store on disk
    │   ├── StoreNotFoundError        no store, or no such feature in it
    │   ├── FingerprintError          made by another spec, or from other media, than asked for
    │   ├── MissingFeatureError       (also KeyError) clips without tokens, with the reason of each
    │   ├── CorruptStoreError         bytes that contradict their checksum or record      exit code 1
    │   └── WriteError                the disk is full or refuses                          exit code 1
    └── FusionTrainError              (in fusion_train.errors) everything of the trainer

One template: `subject: expected X, got Y. Next step.` The subject is a clip id, a shard or a config key.
The library raises; only the command lines print and choose the exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice

from featurecache.outside_text import one_line

MAX_LISTED_PROBLEMS = 20
MAX_SUGGESTED_AMONG = 10_000


class FeatureCacheError(Exception):
    """A problem the user can act on, in the form `subject: expected X, got Y. Next step.`"""

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
        said = [f"expected {one_line(self.expected)}"] if self.expected else []
        if self.got:
            said.append(f"got {one_line(self.got)}" if self.expected else one_line(self.got))
        line = one_line(self.subject) + (": " + ", ".join(said) if said else "")
        if not line.endswith((".", "?", "!")):
            line += "."
        if self.next_step:
            line += " " + one_line(self.next_step)
        listed = [f"\n  {one_line(problem)}" for problem in self.problems[:MAX_LISTED_PROBLEMS]]
        if len(self.problems) > MAX_LISTED_PROBLEMS:
            listed.append(f"\n  … and {len(self.problems) - MAX_LISTED_PROBLEMS} more")
        return line + "".join(listed)

    def __str__(self) -> str:  # KeyError, which MissingFeatureError also is, would print repr()
        return self._message()


class ClipListError(FeatureCacheError):
    """The clip list is missing, malformed, or names something twice or outside its folder."""


class DatasetError(FeatureCacheError):
    """A dataset's folder is not in the layout that its importer reads, or holds labels that it does not know."""


class MediaError(FeatureCacheError):
    """One clip's media cannot be decoded; extraction records it as failed and goes on."""

    exit_code = 1


class EncoderError(FeatureCacheError):
    """An encoder that is not registered, or an option that it does not have."""


class WeightsError(FeatureCacheError):
    """Weights that are missing, incomplete, or of another architecture."""


class MissingExtraError(FeatureCacheError):
    """A command needs packages that are not installed; `pip install` with the extra brings them."""


class BrokenPackageError(FeatureCacheError):
    """A package of another project is installed and cannot be imported, such as torchvision beside another torch."""


class SpreadsheetError(FeatureCacheError):
    """A file is no xlsx workbook."""


class SpecError(FeatureCacheError):
    """A spec that cannot be read or is incomplete."""


class StoreError(FeatureCacheError):
    """A problem with a store on disk."""


class StoreNotFoundError(StoreError):
    """There is no store at this place, or no such feature in it."""


class FingerprintError(StoreError):
    """What is stored was made by another spec, or from other media, than what is asked for."""


class MissingFeatureError(StoreError, KeyError):
    """Clips whose tokens are absent, failed or not extracted; `clip_ids` lists them."""

    def __init__(self, subject: str, *, clip_ids: Sequence[str], **rest: object) -> None:
        self.clip_ids = list(clip_ids)
        super().__init__(subject, **rest)  # type: ignore[arg-type]


class CorruptStoreError(StoreError):
    """Stored bytes contradict their checksum, index or commit record."""

    exit_code = 1


class WriteError(StoreError):
    """The disk is full or refuses; what was committed before is untouched."""

    exit_code = 1


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the nearest of `known`; an empty string for none, or too many to look at."""
    names = list(islice(known, MAX_SUGGESTED_AMONG + 1))
    if len(names) > MAX_SUGGESTED_AMONG:  # a minute's work
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""
