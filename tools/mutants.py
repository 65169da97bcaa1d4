"""Mutation tests: `python tools/mutants.py --sample 20 [MODULE…]`, or `make mutants`. What the suite lets pass.

Cosmic Ray says where a module may be changed and writes the change; the tests that `mutants.toml` names for the module
run against it, in a copy of the checkout below `build/mutants`. A change that no test notices has survived.

A module has hundreds of mutants, so a sample is drawn: places in an order that the seed decides, one mutant of each
before a second of any, which keeps an operator with eleven replacements from counting eleven times. A larger sample
holds the smaller one. Results are kept in one Cosmic Ray session a module, named by the hash of its source: a stopped
command goes on, an edited module begins anew, and `--again` tries survivors once more after tests were written.

Tests run in a fork of a process that has imported what they import of other packages, which takes seconds each time.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import click
import cosmic_ray.commands
from cosmic_ray.mutating import _make_diff, use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult

from featurecache.console import say

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "build" / "mutants"
TREE = FOLDER / "tree"
OUTPUT = FOLDER / "output.txt"
QUIET = "ignore::pytest.PytestAssertRewriteWarning"
"""What pytest says of packages with plugins that were imported before it."""
OURS = ("featurecache", "fusion_train", "tests")
HARNESS_FAILED = 70
"""Exit status of a fork that could not run its tests at all: neither killed nor survived."""
SLOWEST = 4.0
"""Times what the tests take without a mutation; a mutant that takes longer loops and counts as killed."""


def read_table() -> dict:
    """Read `mutants.toml`: which tests belong to which module, which mutants are equivalent."""
    return tomllib.loads((Path(__file__).parent / "mutants.toml").read_text(encoding="utf-8"))


def tests_of(module: str, table: dict) -> list[str]:
    """Test files for a module, by the first pattern that fits; `UsageError` where none does."""
    for rule in table["tests"]:
        if fnmatch(module, rule["modules"]):
            return rule["run"]
    raise click.UsageError(f"{module}: no pattern of tools/mutants.toml fits it. Add one with the tests to run.")


def copy_checkout() -> None:
    """Bring the copy up to date, files of git and those it would add alone; nothing is mutated in the checkout."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.split("\0")
    wanted = {name for name in names if name and (CHECKOUT / name).is_file()}
    for name in wanted:
        source, target = CHECKOUT / name, TREE / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    for path in [*TREE.rglob("*.py")]:
        if str(path.relative_to(TREE)) not in wanted:
            path.unlink()


def session_path(module: str) -> Path:
    """Path of the session of a module as its source is now, made where there is none."""
    digest = hashlib.sha256((TREE / module).read_bytes()).hexdigest()[:12]
    path = FOLDER / f"{module.removesuffix('.py').replace('/', '.')}-{digest}.sqlite"
    if not path.exists():
        with use_db(str(path)) as database:
            cosmic_ray.commands.init([Path(module)], database, {})
    return path


def drawn(items: Iterable[WorkItem], module: str, size: int, seed: int, table: dict) -> list[WorkItem]:
    """Draw `size` mutants, all with 0: places in the order of the seed, one mutant of each in every round."""
    annotations = annotation_spans((TREE / module).read_text(encoding="utf-8"))
    places: dict[tuple, list[WorkItem]] = {}
    for item in sorted(items, key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence)):
        mutation = item.mutations[0]
        name = mutation.operator_name.removeprefix("core/")
        inside = any(start <= tuple(mutation.start_pos) < end for start, end in annotations)
        if not inside and not any(fnmatch(name, pattern) for pattern in table["left_out"]["operators"]):
            places.setdefault((tuple(mutation.start_pos), name.split("_")[0]), []).append(item)
    rounds: list[tuple[int, float, WorkItem]] = []
    for place in sorted(places):
        choice = random.Random(f"{seed} {module} {place}")
        shuffled = choice.sample(places[place], len(places[place]))
        rounds += [(turn, choice.random(), item) for turn, item in enumerate(shuffled)]
    rounds.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in rounds][: size or None]


def annotation_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end, as (line, column): they are not run, so no test can tell them apart."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                spans.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return spans


def run_tests(tests: Sequence[str], limit_s: float, imported: Path | None = None) -> tuple[int | None, float]:
    """Run tests in a fork until the first fails: exit status (None: ran past `limit_s`), seconds.

    `imported` receives the names of the modules of other packages that they imported.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        status = HARNESS_FAILED
        try:
            status = _run_pytest(tests, imported)
        except BaseException:  # noqa: BLE001  nothing may run on in the fork
            traceback.print_exc()
        finally:
            os._exit(status)
    while time.monotonic() - started < limit_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end_group(child)
            return os.waitstatus_to_exitcode(status), time.monotonic() - started
        time.sleep(0.05)
    _end_group(child)
    os.waitpid(child, 0)
    return None, time.monotonic() - started


def _run_pytest(tests: Sequence[str], imported: Path | None) -> int:
    """Run inside the fork: a session of its own, so that whatever the tests start ends with it."""
    os.setsid()
    with OUTPUT.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.dont_write_bytecode = imported is None
    import pytest

    status = int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", QUIET, *tests]))
    elsewhere = [
        name
        for name, module in sys.modules.items()
        if name.split(".")[0] in OURS and not (getattr(module, "__file__", None) or str(TREE)).startswith(str(TREE))
    ]
    if elsewhere:  # then no mutant of the copy was ever tested
        print(f"imported from outside the copy: {', '.join(sorted(elsewhere))}")
        return HARNESS_FAILED
    if imported is not None:
        ours = (*OURS, "__main__")
        others = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
        names = [name for name, file in others.items() if name.split(".")[0] not in ours and "site-packages" in file]
        imported.write_text("\n".join(names), encoding="utf-8")
    sys.stdout.flush()
    return status


def _end_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def baseline(tests: Sequence[str]) -> float:
    """Seconds of the tests without a mutation, with other packages imported already; `ClickException` if one fails.

    Tests with time limits may fail once on a loaded machine, so that they are tried twice.
    """
    names = FOLDER / "imported.txt"
    status, seconds = run_tests(tests, 1800, names)
    if status != 0:
        status, seconds = run_tests(tests, 1800, names)
    if status != 0:
        raise click.ClickException(f"tests: expected a pass without a mutation, got status {status}. See {OUTPUT}.")
    for name in names.read_text(encoding="utf-8").split():
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  a module that only its package may import is imported by it later
            continue
    return seconds


def try_mutant(item: WorkItem, tests: Sequence[str], limit_s: float) -> WorkResult:
    """Write one mutant into the copy, run the tests and put the module back."""
    mutation = item.mutations[0]
    cached = importlib.util.cache_from_source(str(TREE / mutation.module_path))
    Path(cached).unlink(missing_ok=True)  # a mutant of the same length and second would be taken for the module
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    with use_mutation(TREE / mutation.module_path, operator, mutation.occurrence) as (before, after):
        if after is None:
            return WorkResult(WorkerOutcome.NO_TEST)
        diff = "\n".join(_make_diff(before, after, mutation.module_path))
        status, _ = run_tests(tests, limit_s)
    if status in (5, HARNESS_FAILED):
        raise click.ClickException(
            f"{mutation.module_path}: expected tests that run, got status {status}. See {OUTPUT}."
        )
    outcome = TestOutcome.SURVIVED if status == 0 else TestOutcome.KILLED
    return WorkResult(WorkerOutcome.NORMAL, "timeout" if status is None else str(status), outcome, diff)


def changed_lines(diff: str) -> tuple[str, str]:
    """Return the line that a mutant changes, and what it becomes, without indentation."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    old, new = ([line[1:].strip() for line in lines if line[0] == sign] for sign in "-+")
    return " ".join(old), " ".join(new)


def reason_of(module: str, diff: str, table: dict) -> str | None:
    """Why a survivor is equivalent, or is left; None where nobody has said so."""
    old, new = changed_lines(diff)
    for entry in table.get("equivalent", []):
        if fnmatch(module, entry["module"]) and entry["line"] in old and entry["becomes"] in new:
            return entry["reason"]
    return None


def report(module: str, chosen: Sequence[WorkItem], results: dict[str, WorkResult], table: dict) -> str:
    """Say the survivors of one module, those without a reason last, and their share of what could be killed."""
    tried = [(item, results[item.job_id]) for item in chosen if item.job_id in results]
    survivors = [result for _, result in tried if result.test_outcome == TestOutcome.SURVIVED]
    reasons = [(result, reason_of(module, result.diff or "", table)) for result in survivors]
    unexplained = [result for result, reason in reasons if reason is None]
    counted = len(tried) - (len(survivors) - len(unexplained))
    share = f"{len(unexplained) / counted:.0%}" if counted else "–"
    lines = [
        f"{module}: {len(unexplained)} of {counted} mutants survive ({share}); "
        f"{len(survivors) - len(unexplained)} more are equivalent"
    ]
    for result, reason in sorted(reasons, key=lambda entry: entry[1] is None):
        old, new = changed_lines(result.diff or "")
        lines += [f"  - {old}", f"  + {new}" + (f"   ({reason})" if reason else "")]
    return "\n".join(lines)


def outcome_of(module: str, result: WorkResult, table: dict) -> str:
    """Return `equivalent`, `survived`, `timeout` or `killed`."""
    if result.test_outcome == TestOutcome.SURVIVED:
        return "survived" if reason_of(module, result.diff or "", table) is None else "equivalent"
    return "timeout" if result.output == "timeout" else "killed"


def summary(totals: Counter[str]) -> str:
    """One line: the share of survivors among mutants that a test could kill, those that ran too long left out."""
    counted = totals["survived"] + totals["killed"]
    low, high = wilson(totals["survived"], counted)
    return (
        f"overall: {totals['survived']} of {counted} mutants survive ({low:.0%} to {high:.0%}); "
        f"{totals['equivalent']} more are equivalent, {totals['timeout']} ran too long"
    )


def sample_sizes(paths: Sequence[str], total: int, seed: int) -> dict[str, int]:
    """Deal a sample over modules: each of `total` draws falls on a line of their code, so that long ones get more.

    Draws are in a fixed order, that of the modules in the result: a larger total adds to a smaller one, and what a
    stopped run has done is a sample too.
    """
    lines = [(TREE / path).read_text(encoding="utf-8").count("\n") for path in paths]
    choice = random.Random(f"{seed} overall")
    return dict(Counter(choice.choices(paths, weights=lines)[0] for _ in range(total)))


def wilson(count: int, total: int) -> tuple[float, float]:
    """The Wilson interval (95 %) of a share."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.959964, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * ((share * (1 - share) + z * z / (4 * total)) / total) ** 0.5 / (1 + z * z / total)
    return max(middle - half, 0.0), min(middle + half, 1.0)


@click.command()
@click.argument("modules", nargs=-1)
@click.option("--sample", default=20, show_default=True, help="Mutants of each module; 0 for all.")
@click.option("--overall", type=click.IntRange(1), help="So many mutants over all modules, dealt by their length.")
@click.option("--seed", default=0, show_default=True, help="Decides which.")
@click.option("--again", is_flag=True, help="Try survivors once more, as after writing tests.")
@click.option("--minutes", default=0.0, help="Begin no further mutant after so long; 0 for no end.")
def main(modules: Sequence[str], sample: int, overall: int | None, seed: int, again: bool, minutes: float) -> None:
    """Change MODULES (all of tools/mutants.toml without any) a little and list what no test notices."""
    table, deadline = read_table(), time.monotonic() + (minutes or 1e9 / 60) * 60
    FOLDER.mkdir(parents=True, exist_ok=True)
    copy_checkout()
    os.chdir(TREE)
    sys.path[:] = [str(TREE), *(part for part in sys.path if Path(part or ".").resolve() != CHECKOUT)]
    os.environ |= {"PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1"}
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]  # what this tool itself imported of the checkout; tests import the copy
    patterns = modules or table["modules"]
    paths = sorted({str(path) for pattern in patterns for path in Path().glob(pattern) if path.name != "__init__.py"})
    if not paths:
        raise click.UsageError(f"{' '.join(patterns)}: no such module below {CHECKOUT}.")
    sizes = sample_sizes(paths, overall, seed) if overall else dict.fromkeys(paths, sample)
    seconds: dict[tuple[str, ...], float] = {}
    totals: Counter[str] = Counter()
    for module, size in sizes.items():
        tests = tests_of(module, table)
        with use_db(str(session_path(module))) as database:
            chosen = drawn(database.work_items, module, size, seed, table)
            results = dict(database.results)
            pending = [
                item
                for item in chosen
                if item.job_id not in results or (again and results[item.job_id].test_outcome == TestOutcome.SURVIVED)
            ]
            if pending and time.monotonic() < deadline and tuple(tests) not in seconds:
                seconds[tuple(tests)] = baseline(tests)
            for item in pending:
                if time.monotonic() > deadline:
                    break
                results[item.job_id] = try_mutant(item, tests, SLOWEST * seconds[tuple(tests)] + 20)
                database.set_result(item.job_id, results[item.job_id])
        tried = {item.job_id: results[item.job_id] for item in chosen if item.job_id in results}
        totals.update(outcome_of(module, result, table) for result in tried.values())
        say(report(module, chosen, results, table))
    if overall:
        say(summary(totals))


if __name__ == "__main__":
    main()
