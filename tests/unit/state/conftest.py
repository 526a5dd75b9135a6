"""Pieces as small as the states of these tests."""

import pytest

from decentral.state.download import pieces
from tests.unit.state.nursery import PIECE_BYTES


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MIN_PIECE_BYTES", PIECE_BYTES)
