"""Encoder protocols, and encoders by name.

An encoder is a frozen network. It states which `View` of a clip it reads, turns the view of one clip into an array of
fixed shape (`preprocess`, which decode workers call and which needs no torch), runs the network on a batch of such
arrays (`forward`), and averages the encoder tokens to the fixed count that a store holds (`pool`). An encoder knows no
file of a clip and no store.

Three protocols, each with all members that its callers use:

    Encoder            a loaded encoder; extraction calls these members and no other
    RegisteredEncoder  adds opening by name and planning without weights; an entry point names such a class
    ExportableEncoder  adds rebuilding from a spec and a network; an exported model calls these members

Shapes: B clips, F frames, H W pixels, S audio samples, T encoder tokens, K pooled tokens, D encoder width.

An encoder of another package is a class, named under the entry point group `featurecache.encoders`. It derives from
`RegisteredEncoder` or `ExportableEncoder`, or defines the same members; those that have a default here may be left out
in both cases. An encoder can be exported if its class defines the members of `ExportableEncoder`; no list names it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featurecache.encoders.perturbation import PERTURB_OPTION, SPEC_KEY, Perturbation, parse_perturbation
from featurecache.errors import EncoderError, suggest
from featurecache.spec import Spec
from featurecache.views import CHANNELS, AudioView, Channels, FramesView, TextView, View

if TYPE_CHECKING:
    import torch

    from featurecache.encoders.network import FrozenNetwork

__all__ = [
    "CHANNELS",
    "AudioView",
    "Channels",
    "Encoder",
    "ExportableEncoder",
    "FramesView",
    "RegisteredEncoder",
    "TextView",
    "View",
    "encoder_class",
    "encoder_entry_point",
    "exportable_class",
    "open_encoder",
    "registered",
]
ENTRY_POINTS = "featurecache.encoders"

REQUIRED = ("open", "spec", "preprocess", "forward", "pool")
"""Methods that the class of an encoder has to define."""
EXPORTING = ("from_spec", "empty_network", "options_of", "settings")
"""Further members that the class of an encoder has to define to be exported; `network` is one of its instances."""
OPTIONAL = (
    *("needs_valid", "notices", "output_layer", "num_valid", "without_network", "forward_layers"),
    *("plan_shape", "plan_notices", "plan_layers"),
)
"""Members with a default."""

FRAMES_IMPLEMENTATION = 2
"""`implementation` in the specs of this package's encoders of frames.

Features of implementation 1 may hold clips whose frames differ from the displayed ones: mirrored or anamorphic
recordings, AVI with B-frames, joined recordings, stills of 16 bits.
"""


class Encoder(Protocol):
    """A loaded, frozen encoder."""

    name: str
    view: View
    shape: tuple[int, int]
    """(K, D)."""
    batch_size: int
    """Number of clips in every batch; the last batch is padded. It decides the last bits, so the spec names it."""
    needs_valid: bool = False
    """Whether `pool` averages over the clip's own duration only and therefore needs `num_valid` of every clip."""
    notices: Sequence[str] = ()
    """Lines about the loaded encoder for the user; the command line prints them."""
    output_layer: int | None = None
    """Number of blocks whose output `forward` returns, if `forward_layers` gives it too; else None. The spec states it
    as `blocks` of its `tap`, and encoders that differ only in it share one forward."""

    @abstractmethod
    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        ...

    @abstractmethod
    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Turn the view of one clip into the network's input without batch axis.

        Args:
            view: (S,) float32 of a waveform, (F, H, W, 3) uint8 of frames, or (bytes,) uint8, the UTF-8 of words.

        Raises:
            MediaError: the clip is at fault; it is recorded as failed. Any other error stops the run.
        """
        ...

    @abstractmethod
    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """Encode (B, …) preprocessed inputs to (B, T, D) encoder tokens on the encoder's device."""
        ...

    def forward_layers(self, batch: np.ndarray, layers: Sequence[int]) -> Mapping[int, torch.Tensor]:
        """Encode as `forward`, but return layer -> its tokens (B, T, D), from one forward; called only with
        `output_layer`."""
        raise NotImplementedError(f"{self.name}: output_layer without forward_layers")

    def num_valid(self, view: np.ndarray) -> int:
        """Return how many of the T tokens the clip fills, at least 1; called only if `needs_valid`."""
        raise NotImplementedError(f"{self.name}: needs_valid without num_valid")

    def without_network(self) -> Encoder | None:
        """Return a copy without the network, which can be pickled; None, the default, if there is no such copy.

        Decode workers that are processes use its `view`, `needs_valid`, `preprocess` and `num_valid`. Without it, clips
        are decoded and preprocessed in threads.
        """
        return None

    @abstractmethod
    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average (B, T, D) encoder tokens to (B, K, D) float32 on the device.

        Args:
            valid: `num_valid` of each of the B clips; passed if and only if `needs_valid`.
        """
        ...


class RegisteredEncoder(Encoder, Protocol):
    """An encoder that is opened by its name: the class that an entry point names."""

    default_weights: str
    """Checkpoint folder or hub id that `open` loads if the user names no weights."""

    @classmethod
    @abstractmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> Encoder:
        """Load every weight of the network, or fail.

        Args:
            device: a torch device of this machine, such as cpu or cuda:1; callers resolve "auto".

        Raises:
            WeightsError: the weights are missing, incomplete or of another architecture.
            EncoderError: unknown option or dtype.
        """
        ...

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) for `fcache plan`. The default loads the encoder; an override reads its config only."""
        return cls.open(weights, "cpu", "float32", options).shape

    @classmethod
    def plan_notices(cls, weights: str | None, options: Mapping[str, Any]) -> Sequence[str]:
        """Return `notices` for `fcache plan`, from the checkpoint's config only."""
        return ()

    @classmethod
    def plan_layers(cls, weights: str | None, options: Mapping[str, Any]) -> int:
        """Return the number of layers that `layer=all` names, from the checkpoint's config only; 0 without
        `forward_layers`."""
        return 0


class ExportableEncoder(RegisteredEncoder, Protocol):
    """An encoder that an exported model runs, from a spec and a network with weights, without a checkpoint.

    The exporter copies the module of the class and all modules of its package that it imports. From elsewhere these may
    import this package, torch, transformers, PyAV, NumPy, Pillow, safetensors and the standard library. The weights of
    the network are its parameters and persistent buffers.
    """

    network: FrozenNetwork | None
    """The network that the exported model holds; None after `from_spec` without a network."""

    @classmethod
    @abstractmethod
    def open(
        cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]
    ) -> ExportableEncoder:
        """Load as `RegisteredEncoder.open`."""
        ...

    @abstractmethod
    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode as `Encoder.forward`; an exported model passes tensors."""
        ...

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_spec` and `empty_network` build the encoder without its checkpoint."""
        ...

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> ExportableEncoder:
        """Build the encoder of a spec around a loaded network.

        Without a network only `view`, `shape`, `preprocess`, `needs_valid` and `num_valid` can be used.
        """
        ...

    @classmethod
    @abstractmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """Return the network without its weights."""
        ...

    @classmethod
    @abstractmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        ...


class _PerturbedEncoder(Encoder):
    """An encoder that perturbs every view before the wrapped encoder preprocesses it."""

    def __init__(self, encoder: Encoder, perturbation: Perturbation) -> None:
        self._encoder, self._perturbation = encoder, perturbation
        self.name = encoder.name
        self.view = encoder.view
        self.shape = encoder.shape
        self.needs_valid = encoder.needs_valid
        self.notices = encoder.notices
        self.output_layer = encoder.output_layer

    @property
    def batch_size(self) -> int:
        return self._encoder.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._encoder.batch_size = size

    def spec(self, stored_dtype: str) -> Spec:
        """Return the encoder's spec, with the perturbation in its preprocessing."""
        spec = self._encoder.spec(stored_dtype)
        return replace(spec, preprocessing={**spec.preprocessing, SPEC_KEY: self._perturbation.as_json()})

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Perturb the view, then preprocess it as the encoder does."""
        return self._encoder.preprocess(self._perturbation.apply(view))

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """Encode as the encoder does."""
        return self._encoder.forward(batch)

    def forward_layers(self, batch: np.ndarray, layers: Sequence[int]) -> Mapping[int, torch.Tensor]:
        """Encode as the encoder does."""
        return self._encoder.forward_layers(batch, layers)

    def num_valid(self, view: np.ndarray) -> int:
        """Return the encoder's number of valid tokens; a perturbation does not change the length of a view."""
        return self._encoder.num_valid(view)

    def without_network(self) -> Encoder | None:
        """Return a perturbing copy of the encoder's copy without a network."""
        encoder = self._encoder.without_network()
        return None if encoder is None else _PerturbedEncoder(encoder, self._perturbation)

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average as the encoder does."""
        return self._encoder.pool(tokens) if valid is None else self._encoder.pool(tokens, valid)


def registered() -> dict[str, str]:
    """Return the name of every installed encoder, and the `module:class` that its entry point names."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def encoder_class(name: str) -> type[RegisteredEncoder]:
    """Return the class that is registered under a name, without loading weights.

    Raises:
        EncoderError: no encoder of this name (the nearest name is suggested), several of it, or a class that cannot be
            imported or lacks members that an encoder has to define.
    """
    point = encoder_entry_point(name)
    try:
        encoder = point.load()
    except (ImportError, AttributeError) as error:
        raise EncoderError(
            f'encoder "{name}": {point.value}',
            expected="a class that can be imported",
            got=str(error).partition("\n")[0].rstrip("."),
            next_step="Install its package again, with what it needs.",
        ) from error
    missing = [member for member in REQUIRED if not _defines(encoder, member)]
    if not isinstance(encoder, type) or missing:
        raise EncoderError(
            f'encoder "{name}": {point.value}',
            expected="a class with " + ", ".join(REQUIRED),
            got="one without " + ", ".join(missing) if isinstance(encoder, type) else type(encoder).__name__,
            next_step="Derive it from featurecache.encoders.RegisteredEncoder, which describes every member.",
        )
    return _with_defaults(encoder)


def encoder_entry_point(name: str) -> EntryPoint:
    """Return the entry point of a registered name.

    Raises:
        EncoderError: no encoder of this name; the nearest name is suggested. Two classes of this name.
    """
    points = {point.value: point for point in entry_points(group=ENTRY_POINTS) if point.name == name}
    if not points:
        names = sorted(registered())
        raise EncoderError(
            f'encoder "{name}"',
            expected="one of " + ", ".join(names),
            got="no such encoder",
            next_step=suggest(name, names).strip() or None,
        )
    if len(points) > 1:
        owners = [f"{value} of {point.dist.name if point.dist else 'no package'}" for value, point in points.items()]
        raise EncoderError(
            f'encoder "{name}"',
            expected="one class of this name",
            got=" and ".join(sorted(owners)),
            next_step="Uninstall all of these packages but one.",
        )
    return next(iter(points.values()))


def exportable_class(name: str) -> type[ExportableEncoder]:
    """Return the class of a registered encoder that can be exported.

    Raises:
        EncoderError: as `encoder_class`, or a class without the members of `ExportableEncoder`.
    """
    encoder: Any = encoder_class(name)
    missing = [member for member in EXPORTING if not _defines(encoder, member)]
    if missing:
        raise EncoderError(
            f'encoder "{name}"',
            expected="a class with " + ", ".join(EXPORTING) + ", to be exported",
            got="one without " + ", ".join(missing),
            next_step="Derive it from featurecache.encoders.ExportableEncoder, which describes every member.",
        )
    return encoder


def _defines(encoder: object, member: str) -> bool:
    """Whether a class has a method or property, and not only the abstract one of its base."""
    value = getattr(encoder, member, None)
    return (callable(value) or isinstance(value, property)) and not getattr(value, "__isabstractmethod__", False)


def _with_defaults(encoder: type) -> type[RegisteredEncoder]:
    """Give a class that does not derive from `RegisteredEncoder` the members that have a default there."""
    for base in (Encoder, RegisteredEncoder):
        for member in OPTIONAL:
            if member in vars(base) and not hasattr(encoder, member):
                setattr(encoder, member, vars(base)[member])
    return encoder


def open_encoder(
    name: str,
    *,
    weights: str | None = None,
    device: str = "cpu",
    compute_dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> Encoder:
    """Load an encoder by its registered name, or by name and checkpoint: `hf-audio:facebook/hubert-base-ls960`.

    `device` may be "auto"; the encoder is given the device that this stands for.

    Every encoder has the option `perturb`, which degrades the view before `preprocess` (`perturbation`).

    Raises:
        EncoderError: no encoder of this name; the nearest name is suggested. An unknown perturbation or device.
        WeightsError: the weights are missing, incomplete or of another architecture.
    """
    registered_name, _, checkpoint = name.partition(":")
    encoder_options = dict(options or {})
    perturb = encoder_options.pop(PERTURB_OPTION, None)
    perturbation = None if perturb is None else parse_perturbation(str(perturb))
    from featurecache.encoders.hub import refuse_unreachable

    refuse_unreachable(registered_name, weights or checkpoint or None)
    opened_class = encoder_class(registered_name)
    from featurecache.encoders.network import resolve_device  # imports torch, which naming an encoder does not need

    resolved = str(resolve_device(device))
    encoder = opened_class.open(weights or checkpoint or None, resolved, compute_dtype, encoder_options)
    return encoder if perturbation is None else _perturbed(encoder, perturbation)


def _perturbed(encoder: Encoder, perturbation: Perturbation) -> Encoder:
    view = encoder.view
    if isinstance(view, TextView):
        got = f'"{perturbation.name}", which is for {perturbation.medium}'
        raise EncoderError(f"{encoder.name}.{PERTURB_OPTION}", expected="none, since it reads words", got=got)
    medium = "sound" if isinstance(view, AudioView) else "frames"
    single_frame = isinstance(view, FramesView) and view.count == 1
    needs_more_frames = perturbation.name == "drop-frames" and single_frame
    if perturbation.medium != medium or needs_more_frames:
        raise EncoderError(
            f"{encoder.name}.{PERTURB_OPTION}",
            expected=f"one for {'a single frame' if needs_more_frames else medium}",
            got=f'"{perturbation.name}", which is for {"several frames" if needs_more_frames else perturbation.medium}',
        )
    return _PerturbedEncoder(encoder, perturbation)
