"""Metrics as pure functions of references and predictions: dicts of clip id -> label, labels, score or text.

    hit_rate, open_vocabulary_scores      groups of words on emotion wheels (MER-UniBench)
    sentiment_scores                      WAF; `three_way_sentiment_scores` is the variant of the released code
    classification_scores                 accuracy (WAR), UAR, weighted F1, confusion matrix
    multi_label_scores                    macro mAP, micro and samples F1, Jaccard
    regression_scores                     CCC, RMSE, MAE and r of numbers (valence, arousal)
    overlap_scores                        clues and labels of a description, rated by a judge

Scores do not depend on the order of the dicts. A missing or surplus prediction is an error; no score is NaN. The module
`registry` names the metrics for benchmarks and sweeps.
"""

from fusion_train.metrics.classification import (
    ClassificationScores,
    ClassScores,
    MultiLabelScores,
    classification_scores,
    multi_label_scores,
)
from fusion_train.metrics.overlap import LexicalJudge, OverlapScores, overlap_scores
from fusion_train.metrics.regression import RegressionScores, regression_scores
from fusion_train.metrics.sentiment import SentimentScores, sentiment_scores, three_way_sentiment_scores
from fusion_train.metrics.wheel_metrics import HitRate, OpenVocabularyScores, hit_rate, open_vocabulary_scores
from fusion_train.metrics.wheels import EmotionWheels

__all__ = [
    "ClassScores",
    "ClassificationScores",
    "EmotionWheels",
    "HitRate",
    "LexicalJudge",
    "MultiLabelScores",
    "OpenVocabularyScores",
    "OverlapScores",
    "RegressionScores",
    "SentimentScores",
    "classification_scores",
    "hit_rate",
    "multi_label_scores",
    "open_vocabulary_scores",
    "overlap_scores",
    "regression_scores",
    "sentiment_scores",
    "three_way_sentiment_scores",
]
