"""featurecache runs frozen encoders once and keeps their tokens in stores that are never stale and never torn.

    store = featurecache.open_store("features.zarr")
    whisper = store["whisper"]
    whisper.read(["clip_001", "clip_002"])        # (2, 64, 1280)

Reading a store imports no torch.
"""

try:
    import fcntl  # noqa: F401 -- the file locks that stores rely on
except ModuleNotFoundError:
    raise ImportError(
        "featurecache: expected Linux or macOS, got Windows, which has no fcntl. Install it in WSL 2 (wsl --install)."
    ) from None

from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.errors import FeatureCacheError, MissingFeatureError
from featurecache.spec import Spec
from featurecache.store import open_store

__all__ = ["Clip", "ClipList", "FeatureCacheError", "MissingFeatureError", "Spec", "load_clips", "open_store"]
__version__ = "0.2.0"
