"""Say how the weights of a run were chosen, and on which clips: for the model card and the certificate."""

from __future__ import annotations

from fusion_train.run import Run


def weights_chosen(run: Run, which: str) -> str:
    """One phrase for `best`, `last` or a step."""
    if which == "last":
        return "the last ones, which no score chose"
    if which != "best":
        return "those of a step that was named"
    split = run.config().data.eval_split
    scored = [row for row in run.metric_rows() if any(name.startswith(("accuracy/", "eval_loss")) for name in row)]
    if split is None or not scored:
        return "the last ones, since none were scored"
    figure = "mean accuracy" if any(name.startswith("accuracy/") for name in scored[0]) else "loss"
    if len(scored) == 1:
        return f"the only ones scored, by {figure} on the split {split}"
    return f"the best of {len(scored)} scorings by {figure} on the split {split}, where scores are therefore too high"
