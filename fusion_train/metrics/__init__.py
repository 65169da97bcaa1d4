"""Scores, as pure functions over dicts of clip id -> label, labels, score or text.

    hit_rate, open_vocabulary_scores      groups of words on emotion wheels (MER-UniBench)
    sentiment_scores                      WAF; `three_way_sentiment_scores` is the released variant
    classification_scores                 accuracy (WAR), UAR, weighted F1, confusion
    multi_label_scores                    mAP macro, F1 micro and samples, Jaccard
    overlap_scores                        clues and labels of a description, rated by a judge

No score depends on the order of its dicts. A missing or surplus prediction is an error; no score is ever NaN.
`registry` offers them to benches by name.
"""

from fusion_train.metrics.classification import ClassificationScores, ClassScores, classification_scores
from fusion_train.metrics.multi_label import MultiLabelScores, multi_label_scores
from fusion_train.metrics.overlap import LexicalJudge, OverlapScores, overlap_scores
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
    "SentimentScores",
    "classification_scores",
    "hit_rate",
    "multi_label_scores",
    "open_vocabulary_scores",
    "overlap_scores",
    "sentiment_scores",
    "three_way_sentiment_scores",
]
