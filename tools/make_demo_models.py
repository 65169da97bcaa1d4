"""Make the demo's models: tiny networks in the checkpoint layouts of the real ones.

    DIR/whisper   WhisperModel with its feature extractor      for `fcache extract --encoder whisper`
    DIR/eva       Blip2VisionModel                             for eva-global and eva-temporal
    DIR/llama     LlamaForCausalLM with its tokenizer          the frozen base of `fusion-train`

What is inside and why it can learn: demo_encoders.py, demo_language.py. Only the training split of a corpus is read.
The same seed, corpus and number of threads give the same weights; sums over another number of threads round otherwise.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from demo_encoders import make_eva, make_whisper
from demo_language import make_language_model

from featurecache.clips.clip_list import load_clips
from featurecache.clips.responses import named_texts
from featurecache.console import say
from featurecache.encoders.checkpoint import quiet_transformers


def make_models(folder: str | Path, seed: int = 0, corpus: str | Path | None = None) -> dict[str, Path]:
    """Write all three checkpoints under `folder` and return their folders by name.

    `corpus` is a clip list whose training texts the tokenizer should know besides the demo's own sentences.
    """
    folder = Path(folder)
    paths = {name: folder / name for name in ("whisper", "eva", "llama")}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        make_whisper(paths["whisper"], seed)
        make_eva(paths["eva"], seed)
        make_language_model(paths["llama"], seed, _texts(corpus) if corpus else [])
    return paths


def _texts(corpus: str | Path) -> list[str]:
    clips = [clip for clip in load_clips(corpus) if clip.split in (None, "train")]
    texts = [[clip.text, *(text for _, _, text in named_texts(clip.responses))] for clip in clips]
    return [text for of_clip in texts for text in of_clip if text]


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for whisper/, eva/ and llama/.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--corpus", type=click.Path(exists=True, dir_okay=False), help="Clip list to train the tokenizer on too.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Threads of torch.")
def main(out: str, seed: int, corpus: str | None, threads: int) -> None:
    torch.set_num_threads(threads)
    for name, path in make_models(out, seed, corpus).items():
        size_bytes = sum(file.stat().st_size for file in path.iterdir())
        say(f"{name:8s} {path}  {size_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
