"""Ask finished trials the question of the sweep, with the weights that it scores; those on one base together.

A trial that was asked the same clips when these weights were scored is not asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurecache.clips import ClipList
from fusion_train import checkpoint
from fusion_train.assemble import Workbench, reassemble
from fusion_train.data.prompts import find_task
from fusion_train.data.samples import with_answers
from fusion_train.evaluation.evaluate import Evaluation, evaluate
from fusion_train.models.company import Company, evaluating
from fusion_train.sweeps.companies import shares_base
from fusion_train.sweeps.scored_weights import BEST
from fusion_train.sweeps.scoring import evaluate_together
from fusion_train.sweeps.together import Asked, Member, SharedBase, benches_of
from fusion_train.sweeps.work import PREDICTIONS, Work


def evaluate_finished(
    asked: Sequence[Asked], members: Sequence[Member | None], work: Work, base: SharedBase
) -> list[Evaluation]:
    """Evaluate runs of one group; every answer is kept in its run's folder.

    Args:
        members: those that were trained just now; None for one that was finished before this process.

    Raises:
        FeatureCacheError: a run that cannot be opened, or whose clips have no features.
    """
    config = asked[0].config
    if shares_base(config):
        known = [member.bench if member is not None else None for member in members]
        opened = benches_of(asked, known, store=work.store, clips=work.clips, base=base)
    else:
        opened = [reassemble(each.run, store=work.store, clips=work.clips, which=work.weights) for each in asked]
    first = opened[0]
    clips = first.reader.usable(first.clips.in_split(work.split), config.data.failed_clips)
    found = {place: answered for place, member in enumerate(members)
             if member is not None and (answered := _answered(member, clips, work)) is not None}  # fmt: skip
    left = [place for place in range(len(asked)) if place not in found]
    evaluated = _evaluate([asked[place] for place in left], [opened[place] for place in left], clips, work, base)
    found |= zip(left, evaluated, strict=True)
    for place, each in enumerate(asked):
        found[place].write(each.run.folder / PREDICTIONS)
    return [found[place] for place in range(len(asked))]


def _answered(member: Member, clips: ClipList, work: Work) -> Evaluation | None:
    """What the weights answered to these clips when they were scored; None if they were asked others."""
    kept = member.best if work.weights == BEST else member.last
    if kept is None:
        return None
    step, scored = kept
    evaluation = scored.answers.get(work.task)
    if (
        evaluation is None
        or checkpoint.read_state(checkpoint.choose(member.asked.run.checkpoints, work.weights)).step != step
    ):
        return None
    wanted = sorted(clip.id for clip in with_answers(clips, find_task(work.task)))
    return evaluation if wanted == [row["id"] for row in evaluation.predictions] else None


def _evaluate(
    asked: Sequence[Asked], opened: Sequence[Workbench], clips: ClipList, work: Work, base: SharedBase
) -> list[Evaluation]:
    if not asked:
        return []
    config = asked[0].config
    if not shares_base(config):
        return [evaluate(bench, clips, work.task) for bench in opened]
    for each, bench in zip(asked, opened, strict=True):
        folder = checkpoint.choose(each.run.checkpoints, work.weights)
        checkpoint.load_model(folder, bench.model, name=checkpoint.best_weights(folder))
    if len(opened) == 1:
        return [evaluate(opened[0], clips, work.task)]
    llm = base.plain(config.model.llm or "", config.model.llm_dtype)
    models = [bench.model.to(next(llm.parameters()).device) for bench in opened]
    company = Company(llm, models)
    with evaluating(company):
        return evaluate_together(opened[0], company, models, clips, work.task)
