"""The documentation is true: links lead somewhere, code blocks hold what the project can do, and the site builds.

Python blocks are run by `tests/trainer/test_document_examples.py`, and shell blocks of the first steps too.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from documents import (
    LANGUAGES,
    OTHER_PROGRAMS,
    ROOT,
    Block,
    UnknownCommandError,
    blocks,
    check_command,
    commands,
    pages,
    parse,
    settings_of,
)
from pydantic import BaseModel

from featurecache import load_clips
from featurecache.cli import main as fcache
from featurecache.project import read_project
from fusion_train.cli import main as trainer
from fusion_train.config import Config
from fusion_train.evaluation.benchmarks import load_benchmark
from fusion_train.presets import load_config, stage_names
from fusion_train.search.search_file import load_search
from fusion_train.sweeps.sweep_file import load_sweep

sys.path.insert(0, str(ROOT / "tools"))
import docs_site as site

LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELL = blocks("sh")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = unquote(link).partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: no file {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: no heading {link}"


def test_pages_that_the_code_and_the_tools_name_exist() -> None:
    sources = [path for folder in ("featurecache", "fusion_train", "tools", "configs", "tests")
               for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".toml")]  # fmt: skip
    sources += [ROOT / name for name in ("Makefile", "pyproject.toml", "CHANGELOG.md", "CONTRIBUTING.md")]
    named = {name for path in sources for name in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text(encoding="utf-8"))}
    assert "docs/format.md" in named
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


def test_files_of_the_project_that_pages_name_exist() -> None:
    path = re.compile(r"`((?:featurecache|fusion_train|tools|tests|examples|configs)/[\w/.-]+\.(?:py|toml|yaml|sh))`")
    history = ("CHANGELOG.md", "docs/benchmarks.md")
    named = {(page.name, name) for page in pages() if page.relative_to(ROOT).as_posix() not in history
             for name in path.findall(page.read_text(encoding="utf-8"))}  # fmt: skip
    assert len(named) > 10
    assert not [pair for pair in sorted(named) if "STAGE" not in pair[1] and not (ROOT / pair[1]).exists()]


def test_every_code_block_says_its_language() -> None:
    assert len(blocks()) > 40
    wrong = [f"{block} {block.language or 'no language'}" for block in blocks() if block.language not in LANGUAGES]
    assert not wrong


@pytest.mark.parametrize("block", [block for block in SHELL if not block.unchecked], ids=str)
def test_every_command_is_one_that_the_programs_take(block: Block) -> None:
    found = commands(block.text)
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize(
    "block", [b for b in SHELL if "--set" in b.text or "--stage" in b.text or "--config" in b.text], ids=str
)
def test_every_setting_of_a_command_is_one_of_the_configuration(block: Block) -> None:
    for words in commands(block.text):
        if words[:2] == ["fusion-train", "search"]:
            Path("search.yaml").write_text("features: {audio: [hubert]}", encoding="utf-8")
            load_search("search.yaml", parse(words[0], words[1:])[1].params["overrides"])
        settings = settings_of(words)
        if settings is None or str(settings["config"]).endswith(".yaml"):
            continue
        stage = settings["stage"] if settings["stage"] in stage_names() else "perception"
        load_config(settings["config"], stage, settings["overrides"])


@pytest.mark.parametrize("text", [
    "fcache extrakt", "fcache extract --encoder whisper --compression zip", "fcache extract", "make tests",
    "fusion-train --stages probe", "pip install '.[trian]'", "python -m pytest tests/nowhere.py", "unheard-of --help",
    "fusion-train sweep --engine slurm pre_fusion", "srun fcache extract --encoder a --rank 8/8",
    "torchrun --nproc-per-node 2 -m -- fusion_train.cli --stag probe",
])  # fmt: skip
def test_a_wrong_command_is_noticed(text: str) -> None:
    with pytest.raises(UnknownCommandError):
        check_command(*commands(text))


def test_shell_blocks_are_read_as_a_shell_reads_them() -> None:
    text = "fcache plan \\\n  --encoder a  # why\n# nothing\ncat 'x y' > z.jsonl && fcache info"
    assert commands(text) == [["fcache", "plan", "--encoder", "a"], ["cat", "x y"], ["fcache", "info"]]
    assert "cat" in OTHER_PROGRAMS


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_every_yaml_block_is_taken_by_its_loader(block: Block) -> None:
    values = yaml.safe_load(block.text)
    Path("file.yaml").write_text(block.text, encoding="utf-8")
    if "variants" in values:
        assert load_sweep("file.yaml", None, ())
    elif "sets" in values:
        assert load_benchmark("file.yaml")
    elif "draws" in values:
        assert load_search("file.yaml")
    else:
        assert load_config("file.yaml")


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_every_json_block_is_a_line_of_a_clip_list(block: Block) -> None:
    Path("clips.jsonl").write_text(json.dumps(json.loads(block.text)) + "\n", encoding="utf-8")
    assert len(load_clips("clips.jsonl")) == 1


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_every_toml_block_is_a_project_file_or_registers_under_a_group_that_is_read(block: Block) -> None:
    if "project" not in tomllib.loads(block.text):
        Path("featurecache.toml").write_text(block.text, encoding="utf-8")
        assert read_project(Path("featurecache.toml").absolute()).present()
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = tomllib.loads(block.text)["project"]["entry-points"]
    assert groups
    assert set(groups) <= set(project["entry-points"])


def test_the_api_page_names_objects_that_exist() -> None:
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/reference/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


def test_the_page_of_commands_has_every_command_with_its_options() -> None:
    page = site.commands_page()
    for program, group in (("fcache", fcache), ("fusion-train", trainer)):
        for name, command in group.commands.items():
            assert f"### {program} {name}\n" in page
            assert all(option in page for parameter in command.params for option in parameter.opts if "--" in option)


def test_the_page_of_settings_has_every_key_with_its_meaning() -> None:
    def keys(section: BaseModel, prefix: str = ""):
        for name, value in section:
            yield from keys(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [f"{prefix}{name}"]

    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \| (.+) \| (.*) \|$", site.configuration_page(), re.MULTILINE)
    documented = {key: meaning for key, _, _, meaning in rows}
    assert set(keys(Config())) == set(documented)
    assert not [key for key, meaning in documented.items() if not meaning]


def test_links_of_the_repository_become_links_of_the_site() -> None:
    text = "[a](../../ARCHITECTURE.md) [b](../benchmarks.md#store) [c](../../examples/emotion_llama_in_one_file.py)\n"
    assert site.site_links(text, "guides/training.md") == (
        "[a](../internals/architecture.md) [b](../benchmarks.md#store)"
        " [c](../source/examples/emotion_llama_in_one_file.py)\n"
    )
    assert site.site_links("[d](docs/guides/sweeps.md)", "index.md") == "[d](guides/sweeps.md)"
    assert site.site_links("```\n[e](README.md)\n```", "index.md") == "```\n[e](README.md)\n```"


OTHER_WORDS = {
    "company": "trial group", "lane": "device pipeline", "lanes": "device pipeline", "desk": "work queue",
    "crew": "executor", "tally": "metrics accumulator", "journal": "metrics logger", "workbench": "run context",
    "arena": "batch buffer", "rival": "baseline", "rivals": "baselines", "doubles": "duplicates",
    "assemble": "build", "spool": "buffer", "garbage": "leftovers", "doubt": "doubtful label",
}  # fmt: skip
"""Word that is no name in the code -> the word of the glossary for the same thing."""


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def test_names_in_the_code_use_the_words_of_the_glossary() -> None:
    modules = [path for package in ("featurecache", "fusion_train") for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 100
    wrong = []
    for path in modules:
        for name in {path.stem, *names_in(ast.parse(path.read_text(encoding="utf-8")))}:
            words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
            wrong += [f"{path.name}: {name}; say {OTHER_WORDS[word]}" for word in words & set(OTHER_WORDS)]
    assert not wrong


def test_the_glossary_defines_the_words_in_place_of_others() -> None:
    glossary = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Glossary")[2]
    defined = set(re.findall(r"\*\*([\w -]+)\*\*", glossary))
    assert {"clip", "token", "feature", "spec", "fingerprint", "shard", "commit record", "work unit", "run context",
            "trial group", "metrics logger", "baseline", "cross-fitting", "certificate"} <= defined  # fmt: skip


@pytest.mark.slow
@pytest.mark.extra
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "commands.html", "configuration.html", "api.html"} <= {page.name for page in built}
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"?https?://[^>]*>|url\(\"?https?://")
    for page in [*built, *(tmp_path / "site").rglob("*.css")]:
        outside = [tag for tag in loaded.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag]
        assert not outside, page
