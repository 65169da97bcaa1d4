"""What a clip's tokens were made from: a hash over the media bytes and the part of them that a view uses.

Renaming or moving a file changes nothing; changing its bytes, the start or end of the clip, or (for a view of frames)
its crop or (for a view of the peak frame) the peak frame, changes it. Text, labels and split do not enter it.
"""

from __future__ import annotations

import hashlib

from featurecache.clips.clip_list import Clip
from featurecache.files.hashing import file_sha256
from featurecache.media.decode import media_files
from featurecache.spec import canonical_json
from featurecache.views import FramesView, View


def clip_source(clip: Clip, view: View) -> str:
    """Return 64 hex digits that name what `view` sees of this clip; also where it sees nothing.

    Raises:
        OSError: a media file cannot be read.
    """
    files = media_files(clip, view)
    identity: dict[str, object] = {"media": [file_sha256(path) for path in files]}
    if isinstance(view, FramesView) and files and files[0] == clip.image:
        identity["still"] = True
    elif files:
        identity |= {"start_s": clip.start_s, "end_s": clip.end_s}
        if isinstance(view, FramesView) and view.rule == "peak":
            identity["peak_frame"] = clip.peak_frame
    if isinstance(view, FramesView) and files and clip.crop is not None:  # without one, the hashes of earlier versions
        identity["crop"] = clip.crop.as_json()
    return hashlib.sha256(canonical_json(identity).encode("ascii")).hexdigest()
