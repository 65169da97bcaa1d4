"""CCC, RMSE, MAE and r of numbers: worked values, the formulas restated in NumPy, intervals over clusters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from fusion_train.cli import main
from fusion_train.errors import ConfigError, DataError
from fusion_train.evaluation.benchmarks import BenchmarkSet
from fusion_train.evaluation.scoring import score_set
from fusion_train.metrics import regression_scores
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.metrics.registry import choosing_figure, score
from fusion_train.statistics.intervals import interval_between, jackknife


def by_clip(values) -> dict:
    return {f"c{number:03d}": value for number, value in enumerate(values)}


def noisy(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    return x, 0.6 * x + 0.4 + 0.5 * rng.normal(size=count)


def test_a_shift_of_one_costs_what_lin_says():
    """Variance 2 on both sides, covariance 2, means one apart: 2 · 2 / (2 + 2 + 1)."""
    scores = regression_scores(by_clip([1, 2, 3, 4, 5]), by_clip([2, 3, 4, 5, 6]))
    assert scores.ccc == pytest.approx(0.8)
    assert (scores.pearson, scores.rmse, scores.mae) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize(
    ("predictions", "ccc"), [([1, 2, 3], 1.0), ([3, 2, 1], -1.0), ([2, 2, 2], 0.0), ([0.1, 0.1, 0.1], 0.0)]
)
def test_agreement_is_one_reversal_minus_one_and_a_constant_zero(predictions, ccc):
    assert regression_scores(by_clip([1, 2, 3]), by_clip(predictions)).ccc == pytest.approx(ccc, abs=1e-12)


def test_the_figures_are_those_of_numpy_and_scipy():
    x, y = noisy()
    scores = regression_scores(by_clip(x.tolist()), by_clip(map(str, y.tolist())))
    cov = np.cov(x, y, bias=True)
    assert scores.ccc == pytest.approx(2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (x.mean() - y.mean()) ** 2))
    assert scores.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    assert scores.rmse == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))
    assert scores.mae == pytest.approx(np.mean(np.abs(x - y)))
    assert abs(scores.ccc) <= abs(scores.pearson)


def test_weights_count_clips_several_times():
    x, y = noisy(12)
    weights = np.arange(12) % 3
    repeated = np.repeat(np.arange(12), weights)
    for figure in ("CCC", "r", "RMSE", "MAE"):
        weighted = score("regression", by_clip(x.tolist()), by_clip(y.tolist()), main=figure).resample(weights)
        again = score("regression", by_clip(x[repeated].tolist()), by_clip(y[repeated].tolist()), main=figure)
        assert weighted == pytest.approx(again.value), figure


def test_the_interval_is_that_of_fishers_z_over_speakers_and_wider_than_over_clips():
    rng = np.random.default_rng(1)
    speakers = np.arange(80) // 8
    x = rng.normal(size=10)[speakers] + 0.3 * rng.normal(size=80)
    y = 0.5 * x + rng.normal(size=10)[speakers]  # speakers differ, and each is rated too high or too low
    rows = [
        {"id": f"c{n:02d}", "reference": float(x[n]), "prediction": repr(float(y[n])), "speaker": f"s{speakers[n]}"}
        for n in range(80)
    ]
    valence = BenchmarkSet(title="valence", metric="regression")
    grouped = score_set("valence", valence, rows, MetricSettings())
    alone = score_set("valence", valence, [{**row, "speaker": None} for row in rows], MetricSettings())
    assert grouped.clustered_by == "speaker"
    widths = [score.interval.high - score.interval.low for score in (grouped, alone)]
    assert widths[0] > 1.2 * widths[1]
    resampled = jackknife(grouped.scored.resample, grouped.clusters)
    z, reach = np.arctanh(resampled.value), stats.t.ppf(0.975, 9) * resampled.standard_error / (1 - resampled.value**2)
    assert (grouped.interval.low, grouped.interval.high) == pytest.approx((np.tanh(z - reach), np.tanh(z + reach)))
    error = interval_between(resampled, 0, np.inf)
    assert error.high - resampled.value == pytest.approx(resampled.value - error.low)


def test_intervals_of_ccc_cover_the_truth():
    """Pairs of correlation 0.6 with equal means and variances, whose true CCC is 0.6."""
    rng, hits = np.random.default_rng(2), 0
    for _ in range(300):
        x = rng.normal(size=50)
        y = 0.6 * x + 0.8 * rng.normal(size=50)
        scored = score("regression", by_clip(x.tolist()), by_clip(y.tolist()))
        interval = interval_between(jackknife(scored.resample, range(50)), scored.lowest, scored.highest)
        hits += interval.low <= 0.6 <= interval.high
    assert 0.91 <= hits / 300 <= 0.98


@pytest.mark.parametrize(
    ("references", "predictions", "said"),
    [
        (["1", "x"], [1, 2], "references: expected one number per clip, got 1 others"),
        ([1, 2], [1, float("nan")], "predictions: expected one number per clip, got 1 others"),
        ([1, True], [1, 2], "references: expected one number per clip"),
        ([3, 3], [1, 2], "got 3 for each of 2 clips"),
    ],
)
def test_what_is_no_number_is_refused(references, predictions, said):
    with pytest.raises(DataError, match=said):
        regression_scores(by_clip(references), by_clip(predictions))


def test_nothing_is_chosen_by_an_error():
    assert choosing_figure("regression") == "CCC"
    with pytest.raises(ConfigError, match='more is better: CCC, r, got "RMSE"'):
        choosing_figure("regression", "RMSE")


def test_a_file_of_numbers_is_scored_by_the_command(tmp_path):
    x, y = noisy(40)
    lines = [{"id": f"c{n}", "prediction": y[n], "reference": x[n], "speaker": f"s{n % 8}"} for n in range(40)]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["score", str(tmp_path / "theirs.jsonl"), "--metric", "regression", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.output
    expected = regression_scores(by_clip(x.tolist()), by_clip(y.tolist()))
    (scored,) = json.loads(result.stdout)["sets"].values()
    assert scored["figures"]["CCC"] == pytest.approx(expected.ccc)
    assert scored["figures"]["RMSE"] == pytest.approx(expected.rmse)
    assert scored["interval"]["clustered_by"] == "speaker"
    refused = CliRunner().invoke(main, [*command[:-2], "--main", "RMSE", "--selected-from", "3"])
    assert refused.exit_code == 2
    assert "Choose by CCC or r." in refused.output
