"""Every importer on a synthetic dataset in the real layout."""

from __future__ import annotations

import dataset_fixtures as data
from importer_contract import ImporterContract

from featurecache.importers import registered


class TestMer2023(ImporterContract):
    fixture = data.MER2023


class TestMer2024(ImporterContract):
    fixture = data.MER2024


class TestOvMerd(ImporterContract):
    fixture = data.OV_MERD


class TestOvMerdPlus(ImporterContract):
    fixture = data.OV_MERD_PLUS


class TestMerCaptionPlus(ImporterContract):
    fixture = data.MER_CAPTION_PLUS


class TestEmer(ImporterContract):
    fixture = data.EMER


class TestMerr(ImporterContract):
    fixture = data.MERR


class TestIemocap(ImporterContract):
    fixture = data.IEMOCAP


class TestMeld(ImporterContract):
    fixture = data.MELD


class TestCmuMosi(ImporterContract):
    fixture = data.CMU_MOSI


class TestCmuMosei(ImporterContract):
    fixture = data.CMU_MOSEI


class TestChSims(ImporterContract):
    fixture = data.CH_SIMS


class TestChSimsV2(ImporterContract):
    fixture = data.CH_SIMS_V2


class TestDfew(ImporterContract):
    fixture = data.DFEW


class TestMafw(ImporterContract):
    fixture = data.MAFW


class TestMafwCompound(ImporterContract):
    fixture = data.MAFW_COMPOUND


class TestCaer(ImporterContract):
    """Its clips are the files themselves, so none can be missing."""

    fixture = data.CAER
    test_media_that_are_not_there_are_named_and_their_clips_left_out_or_kept = None


class TestMcEiu(ImporterContract):
    fixture = data.MC_EIU


class TestE3(ImporterContract):
    fixture = data.E3


class TestBold(ImporterContract):
    fixture = data.BOLD


class TestMmeverse(ImporterContract):
    fixture = data.MMEVERSE


class TestCocoCaption(ImporterContract):
    fixture = data.COCO_CAPTION


class TestRefcoco(ImporterContract):
    fixture = data.REFCOCO


class TestRefcocoPlus(ImporterContract):
    fixture = data.REFCOCO_PLUS


class TestRefcocog(ImporterContract):
    fixture = data.REFCOCOG


class TestCocoVqa(ImporterContract):
    fixture = data.COCO_VQA


class TestOkVqa(ImporterContract):
    fixture = data.OK_VQA


class TestAokVqa(ImporterContract):
    fixture = data.AOK_VQA


class TestGqa(ImporterContract):
    fixture = data.GQA


class TestCsv(ImporterContract):
    fixture = data.CSV


def test_every_installed_importer_of_ours_is_under_the_contract() -> None:
    tested = {each.fixture.importer for each in ImporterContract.__subclasses__()}
    assert tested == set(registered())
