"""Commands that compute features: extract, plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import featurecache
from featurecache.cli.options import (
    CLIPS,
    DEVICE,
    MEDIA_ROOT,
    OPTIONS,
    STORE,
    WEIGHTS,
    listed,
    settings_of,
    weights_of,
    with_options,
)
from featurecache.console import command, json_result, note, print_table, say, size_text
from featurecache.console_project import ProjectOption
from featurecache.errors import EncoderError, StoreNotFoundError
from featurecache.interrupt import StopRequest
from featurecache.outside_text import first_ids
from featurecache.spec import STORED_DTYPES
from featurecache.store.protocols import Status
from featurecache.tables import Table
from featurecache.terminal import duration, show_progress

MAX_NOTICES = 10
ALL_LAYERS = "all"
"""Value of the option `layer` that stands for every layer, each a feature of its own."""

if TYPE_CHECKING:
    from featurecache.extract.forecast import Forecast
    from featurecache.extract.job import ExtractionJob
    from featurecache.extract.stats import ExtractionStats


def _rank(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    from featurecache.extract.run import parse_rank

    try:
        return parse_rank(value)
    except ValueError:
        raise click.BadParameter(f"expected I/N with I from 0 to N - 1, got {value}") from None


class EncoderOption(ProjectOption):
    """The option `--encoder`, whose help lists the installed encoders."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from featurecache.encoders import registered

        record = super().get_help_record(ctx)
        return record and (record[0], f"{record[1]}  Installed: {', '.join(sorted(registered()))}.")


EXTRACTION_OPTIONS = with_options(
    click.option(
        "--encoder",
        "encoders",
        cls=EncoderOption,
        project_key="encoders",
        multiple=True,
        required=True,
        metavar="[FEATURE=]ENCODER",
        help="Encoder, and the name of its feature where it is another; may be repeated.",
    ),
    CLIPS,
    STORE,
    WEIGHTS,
    click.option("--name", default=None, help="Feature name, for a single encoder; otherwise the encoder's name."),
    MEDIA_ROOT,
    OPTIONS,
    click.option("--dtype", type=click.Choice(STORED_DTYPES), default="float16", show_default=True),
    click.option("--compute-dtype", default="auto", show_default=True, help="float32, float16, bfloat16 or auto."),
    click.option("--compile", "compiled", is_flag=True, help="torch.compile the blocks; another fingerprint."),
    DEVICE,
    click.option("--devices", callback=listed, metavar="D,D…", help="Several at once: cuda:0,cuda:1."),
    click.option("--workers", type=click.IntRange(1), default=None, help="Decode workers; by default one per core."),
    click.option(
        "--decode-in",
        type=click.Choice(["auto", "threads", "processes"]),
        default="auto",
        show_default=True,
        help="What decode workers are; auto: processes for a long list.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=None, help="Clips per batch; by default what fits."),
    click.option("--shard-clips", type=click.IntRange(1), default=None, help="Clips per shard, for a new feature."),
    click.option(
        "--clip-limit",
        type=click.FloatRange(0),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="A clip that takes longer to decode fails; 0 for none.",
    ),
)
"""Options of the commands that extract, or plan an extraction."""


@command()
@EXTRACTION_OPTIONS
@click.option("--rank", callback=_rank, default="0/1", metavar="I/N", help="Do the I-th of N parts.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--ray-address", default=None, help="A running Ray cluster; else one found, or a local one.")
@click.option("--ray-actors", type=click.IntRange(1), default=None, help="Processes; by default one per GPU.")
@click.option("--max-failures", type=click.IntRange(0), default=None, help="Stop when more clips than this fail.")
def extract(**values: Any) -> None:
    """Bring every clip of the list into the store, for every encoder named.

    Running it again does what is left, and nothing twice.

    \b
    Example: fcache extract --encoder whisper --encoder eva-global --encoder eva-temporal
    """
    job = _job(values)
    with StopRequest() as stop, show_progress("extract") as progress:
        how: dict[str, Any] = {
            "notify": note,
            "advance": progress,
            "stop": lambda: stop.requested,
        }
        if values["engine"] == "ray":
            from featurecache.engines import ray

            _refuse_local_options(values)
            stats = ray.run(job, address=values["ray_address"], actors=values["ray_actors"], **how)
        else:
            from featurecache.engines import local

            devices = values["devices"] or [values["device"]]
            stats = local.run(job, devices, rank=values["rank"], **how)
    _print_stats(stats)
    json_result(stats.to_dict())
    if stats.failed:
        raise click.exceptions.Exit(1)


@command()
@EXTRACTION_OPTIONS
@click.option(
    "--calibrate",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    metavar="CLIPS",
    help="Extract so many clips into a store that is thrown away, to tell the time; 0 for none.",
)
@click.option(
    "--headers",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    metavar="CLIPS",
    help="Open the media of so many clips, evenly chosen, to tell the failures; 0 for none.",
)
def plan(calibrate: int, headers: int, **values: Any) -> None:
    """Say what an extraction would write, how long it would take and what would fail, before it does.

    \b
    Example: fcache plan --encoder whisper --encoder eva-global
    """
    from featurecache.extract.forecast import forecast

    job = _job(values)
    devices = values["devices"] or [values["device"]]
    with show_progress("headers") as progress:
        expected = forecast(
            job,
            devices,
            num_trial_clips=calibrate,
            num_headers=headers,
            num_decided=_num_decided(job, devices[0]),
            advance=progress,
        )
    _print_forecast(expected)
    json_result(expected.to_dict())


COMMANDS = [extract, plan]


def _job(values: dict[str, Any]) -> ExtractionJob:
    """Return the extraction that the options of `EXTRACTION_OPTIONS` describe.

    Raises:
        EncoderError: a name or an option does not fit the encoders.
    """
    from featurecache.extract.job import EncoderSettings, ExtractionJob
    from featurecache.extract.run import default_workers

    name = values["name"]
    pairs = [_feature_and_encoder(value) for value in values["encoders"]]
    if name is not None and len(pairs) != 1:
        raise EncoderError("--name", expected="a single --encoder", got=f"{len(pairs)}", next_step="Run each alone.")
    # --weights and --option may name an encoder or a feature.
    names = list(dict.fromkeys(part for pair in pairs for part in reversed(pair)))
    weights, options = weights_of(names, values["weights"]), settings_of(names, values["settings"])
    compiled = {"compile": "yes"} if values["compiled"] else {}
    features: dict[str, EncoderSettings] = {}
    for label, encoder in pairs:
        settings = {**options.get(encoder, {}), **options.get(label, {}), **compiled}
        checkpoint = weights[label] if label in names and weights[label] else weights[encoder]
        feature = name or label
        if feature in features:
            raise EncoderError(
                f"--encoder {encoder}",
                expected="a feature name of its own",
                got=f'"{feature}" twice',
                next_step=f"Name it: --encoder {feature}-2={encoder}.",
            )
        for layer_feature, layer_settings in _per_layer(feature, encoder, checkpoint, settings).items():
            features[layer_feature] = EncoderSettings(
                encoder, checkpoint, layer_settings, values["compute_dtype"], values["batch_size"]
            )
    return ExtractionJob(
        store=values["store"],
        clips=values["clips"],
        features=features,
        media_root=values["media_root"],
        stored_dtype=values["dtype"],
        workers=values["workers"] or default_workers(),
        decode_in=values["decode_in"],
        shard_clips=values["shard_clips"],
        clip_limit_s=values["clip_limit"] or None,
        max_failures=values.get("max_failures"),
    )


def _per_layer(
    feature: str, encoder: str, checkpoint: str | None, settings: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return feature -> settings: one for each layer, named `feature.L04`, if the option `layer` is "all".

    Raises:
        EncoderError: the encoder does not give all layers from one forward.
    """
    from featurecache.encoders import encoder_class

    if settings.get("layer") != ALL_LAYERS:
        return {feature: settings}
    registered_name, _, named = encoder.partition(":")
    num_layers = encoder_class(registered_name).plan_layers(checkpoint or named or None, settings)
    if not num_layers:
        raise EncoderError(
            f"{encoder}.layer",
            expected="the number of a layer, since this encoder does not give several from one forward",
            got=repr(ALL_LAYERS),
            next_step=f"Name one feature per layer: --encoder a={encoder} --option a.layer=1.",
        )
    return {f"{feature}.L{layer:02d}": {**settings, "layer": layer} for layer in range(1, num_layers + 1)}


def _feature_and_encoder(value: str) -> tuple[str, str]:
    """Return (feature name, encoder) of `[FEATURE=]ENCODER`.

    By default the feature of `hf-audio:owner/hubert-base` is named `hubert-base`.
    """
    label, equals, encoder = value.partition("=")
    if equals:
        return label, encoder
    return value.rstrip("/").rpartition("/")[2].rpartition(":")[2], value


def _refuse_local_options(values: dict[str, Any]) -> None:
    """Raise EncoderError if an option is given that only the local engine has."""
    wrong = [f"--{key}" for key in ("devices",) if values[key]] + (["--rank"] if values["rank"] != (0, 1) else [])
    if wrong:
        raise EncoderError(
            " and ".join(wrong),
            expected="--engine local",
            got="--engine ray, which divides the work itself",
            next_step="Leave them out; --ray-actors sets how many processes there are.",
        )


def _num_decided(job: ExtractionJob, device: str) -> dict[str, int]:
    """Return feature -> number of clips that it has decided already; empty if the store does not exist yet.

    Raises:
        FingerprintError: a feature has another spec, so an extraction would refuse it.
    """
    from featurecache.store.local import refuse_other_spec

    try:
        store = featurecache.open_store(job.store)
    except StoreNotFoundError:
        return {}
    for name, opening in job.features.items():
        if name in store:
            requested = opening.open(device).spec(job.stored_dtype)
            refuse_other_spec(f"{job.store}/{name}", store.spec(name), requested)
    ids = job.load_clips().ids
    features = {name: store[name] for name in job.features if name in store}
    return {name: int((feature.statuses(ids) >= 0).sum()) for name, feature in features.items()}


def _print_stats(stats: ExtractionStats) -> None:
    table = Table(["feature", "ok", "failed", "absent", "done earlier", "of these failed"])
    for name, counts in stats.by_feature.items():
        prior = sum(counts.prior.values()), counts.prior[Status.FAILED]
        table.add([name, counts.ok, counts.failed, counts.absent, *prior])
    print_table(table)
    for name, counts in stats.by_feature.items():
        for reason, ids in counts.most_common():
            say(f"{name}: {len(ids)} failed: {reason} ({first_ids(ids)})")
    for clip_id, notice in list(stats.notices.items())[:MAX_NOTICES]:
        say(f"notice: {clip_id}: {notice}")
    if len(stats.notices) > MAX_NOTICES:
        say(f"notice: … and {len(stats.notices) - MAX_NOTICES} more; `--json` has them all")
    if stats.num_clips:
        times = Table(["part", "seconds", "of", "share"])
        for part in stats.utilizations():
            times.add([part.name, f"{part.busy_s:.1f}", part.capacity, f"{part.share:.0%}"])
        print_table(times)
        say(
            f"{stats.num_clips} clips in {duration(stats.wall_s)} ({stats.clips_per_s:.2f} clips/s);"
            f" the bottleneck: {stats.bottleneck}"
        )
    else:
        say("Nothing to do: every clip was decided earlier.")
    if stats.num_left:
        say(f"{stats.num_left} clips are left to other ranks, or to other runs at work now.")
    if stats.failed:
        note("`fcache info --failed` lists failed clips; `fcache retry` extracts them again.")


def _print_forecast(forecast: Forecast) -> None:
    from featurecache.extract.forecast import total_bytes
    from featurecache.media.durations import differences_in_words

    table = Table(["feature", "tokens", "bytes per clip", "clips", "there already", "to write"])
    for item in forecast.estimates:
        shape = f"{item.shape[0]} × {item.shape[1]}"
        counts = (item.clip_bytes, item.num_clips, item.num_decided, size_text(item.bytes_to_write))
        table.add([item.feature, shape, *counts])
    print_table(table)
    free = "" if forecast.free_bytes is None else f", {size_text(forecast.free_bytes)} free"
    say(f"{size_text(total_bytes(forecast.estimates))} to write{free}")
    if forecast.headers_read:
        some = forecast.headers_read < forecast.num_clips and forecast.unreadable
        in_all = f", about {forecast.expected_failures} in all" if some else ""
        opened = f"the files of {forecast.headers_read} of {forecast.num_clips} clips opened"
        say(f"{opened}: {len(forecast.unreadable)} would fail{in_all}")
    for reason, ids in forecast.reasons().items():
        say(f"  {len(ids)} × {reason}: {first_ids(ids)}")
    for line in (*forecast.notices, *differences_in_words(forecast.lengths)):
        say(line)
    if forecast.seconds is not None:
        trial = f"{forecast.clips_per_s:.2f} clips/s in a trial of {forecast.trial_clips} clips here"
        expected = f"about {duration(forecast.seconds)} for {forecast.num_left}"
        say(f"{trial} (the bottleneck: {forecast.bottleneck}): {expected}")
