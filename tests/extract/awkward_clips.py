"""A clip list with six ordinary clips, and one clip of every awkward kind."""

from __future__ import annotations

import json
from pathlib import Path

import recordings as rec
from PIL import Image

NAMES = ("whisper", "eva-global", "eva-temporal")
NUM_PLAIN = 6


def write_clips(folder: Path) -> None:
    """Write the media and `clips.jsonl`."""
    rows: list[dict[str, object]] = []
    for number in range(NUM_PLAIN):
        rec.write_clip(folder / f"c{number}.mp4", num_frames=16 + number, sound=rec.sine(1.5, 200 + 60 * number))
        rows.append({"id": f"c{number}", "video": f"c{number}.mp4", "peak_frame": number})
    rec.write_clip(folder / "mute.mp4", num_frames=5)
    rec.write_clip(folder / "voice.wav", num_frames=0, sound=rec.sine(1.0), audio_codec="pcm_s16le")
    Image.fromarray(rec.picture(3)).save(folder / "still.png")
    (folder / "bad.mp4").write_bytes(b"nonsense" * 100)
    rows += [
        {"id": "mute", "video": "mute.mp4"},
        {"id": "voice", "audio": "voice.wav"},
        {"id": "still", "image": "still.png"},
        {"id": "bad", "video": "bad.mp4"},
        {"id": "gone", "video": "gone.mp4"},
        {"id": "words", "text": "Nothing else."},
        {"id": "part", "video": "c5.mp4", "start_s": 0.5, "end_s": 1.0},
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
