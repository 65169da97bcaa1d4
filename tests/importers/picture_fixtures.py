"""Pictures with texts: COCO captions, RefCOCO, visual questions."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

COCO_CAPTION = DatasetFixture(
    importer="coco-caption",
    files={"annotations/captions_train2014.json": {
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}],
        "annotations": [{"image_id": 9, "id": 1, "caption": "A cat.\n"}, {"image_id": 9, "id": 2, "caption": "A pet."},
                        {"image_id": 8, "id": 3, "caption": "Of no picture."}],
    }},
    media=("train2014/COCO_train2014_000000000009.jpg",),
    num_clips=1,
    expected={"COCO_train2014_000000000009": {
        "image": "train2014/COCO_train2014_000000000009.jpg", "split": "train", "dataset": "coco_caption",
        "questions": [{"task": "caption", "answer": "A cat."}, {"task": "caption", "answer": "A pet."}],
    }},
    needed="annotations/captions_train2014.json",
    left_out={"a caption of no picture, or an empty one": 1},
)  # fmt: skip


def _refcoco(importer: str, dataset: str) -> DatasetFixture:
    return DatasetFixture(
        importer=importer,
        files={
            f"{dataset}/refs(unc).json": {
                "": [
                    {
                        "ref_id": 1,
                        "ann_id": 5,
                        "image_id": 9,
                        "split": "train",
                        "sentences": [{"raw": "the left cat", "sent": "left cat"}, {"sent": "grey one"}],
                    }
                ]
            },
            f"{dataset}/instances.json": {
                "images": [{"id": 9, "width": 200, "height": 100, "file_name": "COCO_train2014_000000000009.jpg"}],
                "annotations": [{"id": 5, "bbox": [10, 20, 90, 40]}],
            },
        },
        media=("images/mscoco/train2014/COCO_train2014_000000000009.jpg",),
        num_clips=1,
        expected={
            "COCO_train2014_000000000009": {
                "image": "images/mscoco/train2014/COCO_train2014_000000000009.jpg",
                "dataset": dataset,
                "split": "train",
                "questions": [
                    {"task": "refer", "answer": "{<5><20><50><60>}", "question": "the left cat"},
                    {"task": "refer", "answer": "{<5><20><50><60>}", "question": "grey one"},
                ],
            }
        },
        needed=f"{dataset}/refs(unc).json",
    )


REFCOCO = _refcoco("refcoco", "refcoco")

REFCOCO_PLUS = _refcoco("refcoco-plus", "refcoco+")

REFCOCOG = _refcoco("refcocog", "refcocog")


def _vqa(importer: str, dataset: str, questions: str, annotations: str) -> DatasetFixture:
    return DatasetFixture(
        importer=importer,
        files={
            questions: {
                "data_subtype": "val2014",
                "questions": [
                    {"image_id": 42, "question_id": 420, "question": "What colour? "},
                    {"image_id": 42, "question_id": 421, "question": "Unanswered?"},
                ],
            },
            annotations: {
                "annotations": [
                    {"question_id": 420, "answers": [{"answer": "red"}, {"answer": "blue"}, {"answer": "blue"}]},
                ]
            },
        },
        media=("val2014/COCO_val2014_000000000042.jpg",),
        num_clips=1,
        expected={
            "COCO_val2014_000000000042": {
                "image": "val2014/COCO_val2014_000000000042.jpg",
                "split": "val",
                "dataset": dataset,
                "questions": [{"task": "vqa", "answer": "blue", "question": "What colour?"}],
            }
        },
        needed=questions,
        left_out={"a question without an answer": 1},
    )


COCO_VQA = _vqa(
    "coco-vqa", "coco_vqa", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
)

OK_VQA = _vqa("ok-vqa", "ok_vqa", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")

AOK_VQA = DatasetFixture(
    importer="aok-vqa",
    files={"aokvqa_v1p0_train.json": {"": [
        {"split": "train", "image_id": 299207, "question_id": "a", "question": "Why?", "choices": ["a", "b"],
         "correct_choice_idx": 1, "direct_answers": ["ride", "ride", "play"]},
        {"split": "train", "image_id": 299207, "question_id": "b", "question": "Who?", "choices": ["he", "she"],
         "correct_choice_idx": 1, "direct_answers": []},
    ]}},
    media=("train2017/000000299207.jpg",),
    num_clips=1,
    expected={"000000299207": {"image": "train2017/000000299207.jpg", "split": "train", "questions": [
        {"task": "vqa", "answer": "ride", "question": "Why?"}, {"task": "vqa", "answer": "she", "question": "Who?"},
    ]}},
    needed="aokvqa_v1p0_train.json",
)  # fmt: skip

GQA = DatasetFixture(
    importer="gqa",
    files={
        "train_balanced_questions.json": {
            "07333408": {
                "imageId": "2375429",
                "question": "Is it overcast?",
                "answer": "no",
                "fullAnswer": "No, it is clear.",
            }
        }
    },
    media=("images/2375429.jpg",),
    num_clips=1,
    expected={
        "2375429": {
            "image": "images/2375429.jpg",
            "split": "train",
            "dataset": "gqa",
            "questions": [{"task": "vqa", "answer": "no", "question": "Is it overcast?"}],
        }
    },
    needed="train_balanced_questions.json",
)
