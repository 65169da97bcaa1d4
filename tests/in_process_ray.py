"""The part of Ray's interface that the engines use; actors live in this process and answer at once."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from typing import Any


class ActorDies(BaseException):
    """Raised in an actor's method where its process dies."""


class RayActorError(Exception):
    """The process of an actor is gone."""


class RayTaskError(Exception):
    """A method of an actor raised an error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class InProcessRay(types.ModuleType):
    """Stands in for the module `ray`."""

    exceptions = types.SimpleNamespace(RayActorError=RayActorError, RayTaskError=RayTaskError)

    def __init__(self, resources: Mapping[str, float] | None = None) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.resources = dict(resources or {"CPU": 2.0})
        self.connections: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        """Arguments of every `init`."""
        self.connected = True
        self.running_cluster = False
        """Whether `init("auto")` finds a cluster."""
        self.actor_options: list[dict[str, Any]] = []
        """Options of every actor, in the order of their start."""
        self.killed: list[InProcessActor] = []
        self.dead_nodes: set[str] = set()
        self.unready = 0
        """The next calls of `wait` find nothing ready."""

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, *address: str, **options: Any) -> None:
        self.connections.append((address, options))
        if address == ("auto",) and not self.running_cluster:
            raise ConnectionError("no cluster")
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "node", "Alive": "node" not in self.dead_nodes}]

    def get_runtime_context(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(get_node_id=lambda: "node")

    def remote(self, **options: Any) -> Callable[[type], types.SimpleNamespace]:
        def start(actor: type, *values: object) -> InProcessActor:
            self.actor_options.append(options)
            return InProcessActor(actor(*values))

        return lambda actor: types.SimpleNamespace(remote=lambda *values: start(actor, *values))

    def get(self, future: Callable[[], Any]) -> Any:
        return future()

    def wait(self, futures: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], ...]:
        if self.unready:
            self.unready -= 1
            return [], futures
        return futures[:num_returns], futures[num_returns:]

    def kill(self, actor: InProcessActor) -> None:
        self.killed.append(actor)


class InProcessActor:
    """An actor whose methods run when they are called; their errors arrive with the result, as in Ray."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> types.SimpleNamespace:
        def remote(*values: object) -> Callable[[], Any]:
            error: Exception
            try:
                result = getattr(self._actor, name)(*values)
            except ActorDies:
                error = RayActorError("The actor died unexpectedly.\nMore about it.")
            except Exception as cause:  # noqa: BLE001 -- as Ray does
                error = RayTaskError(cause)
            else:
                return lambda: result
            return lambda: _raise(error)

        return types.SimpleNamespace(remote=remote)


def _raise(error: Exception) -> None:
    raise error
