"""Every importer on a synthetic dataset in the real layout."""

from __future__ import annotations

import dialogue_fixtures as dialogue
import mer_fixtures as mer
import picture_fixtures as picture
import sentiment_fixtures as sentiment
import table_fixtures as table
import video_fixtures as video
from importer_contract import ImporterContract

from featurecache.importers import registered


class TestMer2023(ImporterContract):
    fixture = mer.MER2023


class TestMer2024(ImporterContract):
    fixture = mer.MER2024


class TestOvMerd(ImporterContract):
    fixture = mer.OV_MERD


class TestOvMerdPlus(ImporterContract):
    fixture = mer.OV_MERD_PLUS


class TestMerCaptionPlus(ImporterContract):
    fixture = mer.MER_CAPTION_PLUS


class TestEmer(ImporterContract):
    fixture = mer.EMER


class TestMerr(ImporterContract):
    fixture = mer.MERR


class TestIemocap(ImporterContract):
    fixture = dialogue.IEMOCAP


class TestMeld(ImporterContract):
    fixture = dialogue.MELD


class TestCmuMosi(ImporterContract):
    fixture = sentiment.CMU_MOSI


class TestCmuMosei(ImporterContract):
    fixture = sentiment.CMU_MOSEI


class TestChSims(ImporterContract):
    fixture = sentiment.CH_SIMS


class TestChSimsV2(ImporterContract):
    fixture = sentiment.CH_SIMS_V2


class TestDfew(ImporterContract):
    fixture = video.DFEW


class TestMafw(ImporterContract):
    fixture = video.MAFW


class TestMafwCompound(ImporterContract):
    fixture = video.MAFW_COMPOUND


class TestCaer(ImporterContract):
    """Its clips are the files themselves, so none can be missing."""

    fixture = video.CAER
    test_media_that_are_not_there_are_named_and_their_clips_left_out_or_kept = None


class TestMcEiu(ImporterContract):
    fixture = dialogue.MC_EIU


class TestE3(ImporterContract):
    fixture = video.E3


class TestBold(ImporterContract):
    fixture = video.BOLD


class TestMmeverse(ImporterContract):
    fixture = table.MMEVERSE


class TestCocoCaption(ImporterContract):
    fixture = picture.COCO_CAPTION


class TestRefcoco(ImporterContract):
    fixture = picture.REFCOCO


class TestRefcocoPlus(ImporterContract):
    fixture = picture.REFCOCO_PLUS


class TestRefcocog(ImporterContract):
    fixture = picture.REFCOCOG


class TestCocoVqa(ImporterContract):
    fixture = picture.COCO_VQA


class TestOkVqa(ImporterContract):
    fixture = picture.OK_VQA


class TestAokVqa(ImporterContract):
    fixture = picture.AOK_VQA


class TestGqa(ImporterContract):
    fixture = picture.GQA


class TestCsv(ImporterContract):
    fixture = table.CSV


def test_every_installed_importer_of_ours_is_under_the_contract() -> None:
    tested = {each.fixture.importer for each in ImporterContract.__subclasses__()}
    assert tested == set(registered())
