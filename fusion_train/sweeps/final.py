"""Ask finished trials the sweep's question, each with its best weights; those on one base together (`scoring`)."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_train import checkpoint
from fusion_train.assemble import Workbench, reassemble
from fusion_train.evaluation.evaluate import Evaluation, evaluate
from fusion_train.models.company import Company, evaluating
from fusion_train.sweeps.companies import shares_base
from fusion_train.sweeps.scoring import evaluate_together
from fusion_train.sweeps.together import Asked, SharedBase, benches_of
from fusion_train.sweeps.work import PREDICTIONS, Work


def evaluate_finished(
    asked: Sequence[Asked], benches: Sequence[Workbench | None], work: Work, base: SharedBase
) -> list[Evaluation]:
    """Evaluate runs of one group; every answer is kept in its run's folder.

    Args:
        benches: of those that were trained just now; None for one that was finished before this process.

    Raises:
        FeatureCacheError: a run that cannot be opened, or whose clips have no features.
    """
    config = asked[0].config
    if shares_base(config):
        opened = benches_of(asked, benches, store=work.store, clips=work.clips, base=base)
        for each, bench in zip(asked, opened, strict=True):
            best = checkpoint.choose(each.run.checkpoints, "best")
            checkpoint.load_model(best, bench.model, name=checkpoint.best_weights(best))
    else:
        opened = [reassemble(each.run, store=work.store, clips=work.clips) for each in asked]
    first = opened[0]
    clips = first.reader.usable(first.clips.in_split(work.split), config.data.failed_clips)
    if len(opened) > 1 and shares_base(config):
        llm = base.plain(config.model.llm or "", config.model.llm_dtype)
        models = [bench.model.to(next(llm.parameters()).device) for bench in opened]
        company = Company(llm, models)
        with evaluating(company):
            found = evaluate_together(first, company, models, clips, work.task)
    else:
        found = [evaluate(bench, clips, work.task) for bench in opened]
    for each, evaluation in zip(asked, found, strict=True):
        evaluation.write(each.run.folder / PREDICTIONS)
    return found
