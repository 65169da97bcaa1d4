"""Sentiment, in the tables of MMSA: CMU-MOSI, CMU-MOSEI, CH-SIMS."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

MMSA_HEADER = ["video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode"]


def _mmsa(
    importer: str, dataset: str, scores: tuple[str, str, str], clip: str, file: str, table: str
) -> DatasetFixture:
    positive, zero, negative = scores
    return DatasetFixture(
        importer=importer,
        files={
            table: [
                MMSA_HEADER,
                ["03bSnISJMiM", clip, "ANYHOW", positive, "", "", "", "Positive", "train"],
                ["_dI--eQ6qVU", "2", "so", zero, "0.5", "", "", "Neutral", "valid"],
                ["_dI--eQ6qVU", "10", "bad", negative, "", "", "", "", "test"],
                ["_dI--eQ6qVU", "11", "?", "", "", "", "", "", "train"],
            ]
        },
        media=(f"Raw/03bSnISJMiM/{file}.mp4", "Raw/_dI--eQ6qVU/2.mp4", "Raw/_dI--eQ6qVU/10.mp4"),
        num_clips=3,
        expected={
            f"03bSnISJMiM_{clip}": {
                "video": f"Raw/03bSnISJMiM/{file}.mp4",
                "text": "ANYHOW",
                "split": "train",
                "dataset": dataset,
                "labels": {"sentiment": "positive", "sentiment_score": float(positive)},
                "dialogue": "03bSnISJMiM",
            },
            "_dI--eQ6qVU_2": {"labels": {"sentiment": "neutral", "sentiment_score": float(zero), "text_score": 0.5}},
            "_dI--eQ6qVU_10": {"labels": {"sentiment": "negative", "sentiment_score": float(negative)}},
        },
        needed=table,
        bad_label=(table, positive, "7.5"),
        left_out={"no score": 1},
    )


CMU_MOSI = _mmsa("cmu-mosi", "cmu_mosi", ("2.4", "0", "-1.75"), "1", "1", "label.csv")

CMU_MOSEI = _mmsa("cmu-mosei", "cmu_mosei", ("3.0", "0.0", "-0.3333"), "0", "0", "label.csv")

CH_SIMS = _mmsa("ch-sims", "ch_sims", ("0.8", "0", "-0.2"), "0001", "0001", "label.csv")

CH_SIMS_V2 = _mmsa("ch-sims-v2", "ch_sims_v2_s", ("0.8", "0", "-0.2"), "1", "0001", "meta.csv")
