"""Versions and positions."""

from __future__ import annotations

import pytest

from replicator.version import FIRST_EPOCH, LAST_EPOCH, ORDINAL_BITS, Position, epoch_of, version

LAST_ORDINAL = (1 << ORDINAL_BITS) - 1


def test_a_later_record_has_a_higher_version() -> None:
    assert version(FIRST_EPOCH, 2) > version(FIRST_EPOCH, 1) > version(FIRST_EPOCH, 0)


def test_any_record_of_a_later_epoch_beats_every_record_of_an_earlier_one() -> None:
    assert version(FIRST_EPOCH + 1, 0) > version(FIRST_EPOCH, LAST_ORDINAL)


def test_a_record_beats_the_scan_of_its_epoch() -> None:
    assert version(FIRST_EPOCH, 1) > version(FIRST_EPOCH, 0)


def test_a_version_fits_a_signed_64_bit_integer_and_its_text_19_digits() -> None:
    highest = version(LAST_EPOCH, LAST_ORDINAL)
    assert highest == (1 << 63) - 1
    assert len(str(highest)) == 19


def test_the_first_version_is_above_what_clocks_in_microseconds_leave_behind() -> None:
    in_the_year_2200_in_microseconds = 7_260_000_000_000_000
    assert version(FIRST_EPOCH, 0) > in_the_year_2200_in_microseconds


@pytest.mark.parametrize("epoch", [FIRST_EPOCH, FIRST_EPOCH + 1, LAST_EPOCH])
@pytest.mark.parametrize("ordinal", [0, 1, LAST_ORDINAL])
def test_a_version_knows_its_epoch(epoch: int, ordinal: int) -> None:
    assert epoch_of(version(epoch, ordinal)) == epoch


@pytest.mark.parametrize(
    ("epoch", "ordinal", "message"),
    [
        (FIRST_EPOCH - 1, 0, "epoch 1023 is outside 1024..32767"),
        (LAST_EPOCH + 1, 0, "epoch 32768 is outside 1024..32767"),
        (FIRST_EPOCH, -1, "ordinal -1 does not fit 48 bits"),
        (FIRST_EPOCH, LAST_ORDINAL + 1, "ordinal 281474976710656 does not fit 48 bits"),
    ],
)
def test_a_version_outside_its_bits_is_refused(epoch: int, ordinal: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        version(epoch, ordinal)


@pytest.mark.parametrize("sequence", [None, "0", "000000000000000000001", "4" * 21, "9" * 56])
def test_a_sequence_is_kept_as_it_was_written(sequence: str | None) -> None:
    assert Position(sequence, 0).sequence == sequence


@pytest.mark.parametrize("sequence", ["", "-1", "1.0", "0x1", "a", " 1", "²"])
def test_a_sequence_consists_of_digits(sequence: str) -> None:
    with pytest.raises(ValueError, match="a sequence number consists of digits"):
        Position(sequence, 0)


def test_an_ordinal_counts_from_zero() -> None:
    with pytest.raises(ValueError, match="an ordinal counts from 0, not -1"):
        Position("1", -1)
