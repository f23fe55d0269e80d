"""Cards and prices of the user's own: what is accepted, and every way in which a file can be wrong."""

import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from tuneplan.hardware_profiles.loader import ProfileError, load_gpu_file, load_price_file
from tuneplan.hardware_profiles.reading import LARGEST_FILE_BYTES

GpuFile = Callable[..., Path]
PriceFile = Callable[[str], Path]

HEADER = "provider,instance,purchase,usd_per_hour,region,date,date_note,source\n"
DEFINING = "provider,instance,purchase,usd_per_hour,region,gpu,gpu_count\n"


def test_gpu_file(gpu_file: GpuFile) -> None:
    """The user's card reads like a bundled one; large rates may be written with an exponent."""
    card = load_gpu_file(gpu_file())
    assert (card.id, card.memory_bytes, card.aliases) == ("my-card", 24 * 2**30, ("mine",))
    assert (card.bandwidth_bytes_per_second, card.peak_flops("bf16")) == (936 * 10**9, 71 * 10**12)
    assert (card.nvlink_bytes_per_second, card.memory.source.reference) == (None, "my notes")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "my-card"', "", "id: "),
        ('id = "my-card"', 'id = "My Card"', "id: "),
        ('vendor = "nvidia"', 'vendor = "intel"', "vendor: .*'nvidia' or 'amd'.*given: 'intel'"),
        ("memory_bytes", "memory_gb", "memory_bytes: Field required"),
        ("25_769_803_776", "24", "memory_bytes.value: .*greater than or equal to 1073741824 .given: 24"),
        ("25_769_803_776", "-1", "memory_bytes.value: "),
        ("25_769_803_776", "nan", "memory_bytes.value: "),
        ("25_769_803_776", '"24 GiB"', "memory_bytes.value: "),
        ("25_769_803_776", "true", "memory_bytes.value: "),
        ("25_769_803_776", "1" + "0" * 30, "memory_bytes.value: "),
        ("71e12", "71", "peak_flops.bf16.value: "),
        ("71e12", "inf", "peak_flops.bf16.value: "),
        ("bf16 =", "bf61 =", "peak_flops.bf61: no such field"),
        ('source = "me"', 'source = "you"', "names the source 'you', which"),
        ('quote = "24 GiB"', 'quote = ""', "memory_bytes.quote: "),
        ('"2026-11-22"', '"yesterday"', "sources.me.date: "),
        ('"2026-11-22"', '"20261122"', "sources.me.date: a date is written as 2026-01-31"),
        ('id = "my-card"', "id = ", "it is not TOML"),
        ('id = "my-card"', "a = " + "[" * 30_000, "it is not TOML"),
    ],
)
def test_broken_gpu_file(gpu_file: GpuFile, old: str, new: str, message: str) -> None:
    """One line names the file and the field."""
    path = gpu_file(old, new)
    with pytest.raises(ProfileError, match=message) as caught:
        load_gpu_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_price_of_a_known_instance(price_file: PriceFile) -> None:
    """A negotiated price replaces nothing: it is an offer of its own."""
    path = price_file(HEADER + "AWS,P4DE.24xlarge,reserved,17.5,us-east-1,2026-11-01,,our contract\n")
    (offer,) = load_price_file(path)
    assert (offer.instance.id, offer.instance.gpu_count) == ("p4de.24xlarge", 8)
    assert (offer.usd_per_hour, offer.purchase, offer.date) == (Decimal("17.5"), "reserved", "2026-11-01")
    assert offer.source == "our contract"


def test_price_of_an_instance_of_ones_own(price_file: PriceFile) -> None:
    """Two more columns define a machine that is not known; the other columns may be left out."""
    path = price_file(DEFINING + "lab,box,on_demand,0.40,basement,RTX 4090,2\n")
    (offer,) = load_price_file(path)
    assert (offer.instance.gpu, offer.instance.gpu_count) == ("rtx-4090", 2)
    assert (offer.date, offer.date_note, offer.source) == (None, "the price file gives no date", str(path))


def test_price_for_a_card_of_ones_own(price_file: PriceFile, gpu_file: GpuFile) -> None:
    """A card from the user's GPU file can be in the user's machine."""
    path = price_file(DEFINING + "lab,box,on_demand,0.40,basement,mine,2\n")
    (offer,) = load_price_file(path, [load_gpu_file(gpu_file())])
    assert offer.instance.gpu == "my-card"


def test_newest_row_of_a_price_file_wins(price_file: PriceFile) -> None:
    """The user appends prices too."""
    rows = "AWS,g6.xlarge,spot,2,r,2026-02-01,,x\nAWS,g6.xlarge,spot,1,r,2026-01-01,,x\n"
    assert [offer.usd_per_hour for offer in load_price_file(price_file(HEADER + rows))] == [Decimal(2)]


def test_spreadsheet_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    """Spreadsheets write a mark and CRLF."""
    path = tmp_path / "prices.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + "AWS,g6.xlarge,spot,2,r,,none,x\n").replace("\n", "\r\n").encode())
    assert len(load_price_file(path)) == 1


@pytest.mark.parametrize("price", ["-1", "NaN", "inf", "-inf", "1e9", "$3", "3,5", "", "free", "9" * 400, "0x10"])
def test_bad_price(price_file: PriceFile, price: str) -> None:
    """Only a plain number from zero up is a price."""
    path = price_file(HEADER + f'AWS,g6.xlarge,spot,"{price}",r,2026-02-01,,x\n')
    with pytest.raises(ProfileError, match=r"prices.csv line 2: usd_per_hour: a price is a number from 0 to") as caught:
        load_price_file(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the column 'provider' is missing"),
        (HEADER, "it has no prices"),
        ("a,b\n1,2\n", "the column 'provider' is missing"),
        (HEADER.replace("region", "regoin"), "the column 'region' is missing"),
        (HEADER.replace("source", "colour"), "the column 'colour' is not known"),
        (HEADER.replace("source", "date"), "the column 'date' is there twice"),
        (HEADER + "AWS,g6.xlarge,spot\n", "line 2: it has more or fewer values"),
        (HEADER + "AWS,g6.xlarge,spot,1,r,2026-01-01,,x,y\n", "line 2: it has more or fewer values"),
        (HEADER + "AWS,g6.xlarge,on demand,1,r,2026-01-01,,x\n", "line 2: purchase: "),
        (HEADER + "AWS,g6.xlarge,spot,1,r,01/02/2026,,x\n", "line 2: date: "),
        (HEADER + "AWS,,spot,1,r,2026-01-01,,x\n", "line 2: instance: "),
        (HEADER + "AWS,g9.xlarge,spot,1,r,2026-01-01,,x\n", "instance 'g9.xlarge' is not known"),
        (HEADER + '"AWS,g6.xlarge,spot,1,r,2026-01-01,,x\n', "near line 1: unexpected end of data"),
        (HEADER + "A" * 200_000 + ",g6.xlarge,spot,1,r,2026-01-01,,x\n", "near line 1: field larger"),
        (HEADER + "\x00,g6.xlarge,spot,1,r,2026-01-01,,x\n", "line 2"),
        (DEFINING + "lab,box,spot,1,r,a100-80,2\n", "line 2: Unknown GPU 'a100-80'"),
        (DEFINING + "lab,box,spot,1,r,a100,0\n", "gpu_count is '0'"),
        (DEFINING + "lab,box,spot,1,r,a100,2.5\n", "gpu_count is '2.5'"),
        (DEFINING + "lab,box,spot,1,r,a100,\n", "gpu_count is ''"),
        (DEFINING + "lab,box,spot,1,r,,2\n", "Unknown GPU ''"),
        (DEFINING + "AWS,p4de.24xlarge,spot,1,r,h100,8\n", "has 8 x a100-80g, not 8 x h100-80g"),
    ],
)
def test_broken_price_file(price_file: PriceFile, text: str, message: str) -> None:
    """One line names the file, and the line and column where there is one."""
    path = price_file(text)
    with pytest.raises(ProfileError, match=message) as caught:
        load_price_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("load", [load_gpu_file, load_price_file])
class TestUnreadable:
    """Files that cannot be read at all, for both kinds."""

    def test_missing(self, load: Callable[[Path], object], tmp_path: Path) -> None:
        """A wrong path."""
        with pytest.raises(ProfileError, match=r"No such file or directory\. Check the path"):
            load(tmp_path / "nothing")

    def test_directory(self, load: Callable[[Path], object], tmp_path: Path) -> None:
        """A folder."""
        with pytest.raises(ProfileError, match="it is not a regular file"):
            load(tmp_path)

    def test_pipe(self, load: Callable[[Path], object], tmp_path: Path) -> None:
        """A pipe that nobody writes to would wait for ever."""
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ProfileError, match="it is not a regular file"):
            load(tmp_path / "pipe")

    def test_null_byte_in_the_path(self, load: Callable[[str], object]) -> None:
        """A path that no file can have."""
        with pytest.raises(ProfileError, match="Cannot read"):
            load("a\x00b")

    def test_not_utf8(self, load: Callable[[Path], object], tmp_path: Path) -> None:
        """A binary file, or an old encoding."""
        (tmp_path / "latin").write_bytes(b"caf\xe9,")
        with pytest.raises(ProfileError, match="byte 3 is not UTF-8"):
            load(tmp_path / "latin")

    def test_too_large(self, load: Callable[[Path], object], tmp_path: Path) -> None:
        """A sparse file of terabytes is refused before it is read."""
        with (tmp_path / "large").open("wb") as stream:
            stream.truncate(LARGEST_FILE_BYTES + 1)
        with pytest.raises(ProfileError, match=r"more than the \d+ that are read"):
            load(tmp_path / "large")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, load: Callable[[Path], object], tmp_path: Path) -> None:
        """Permissions."""
        path = tmp_path / "locked"
        path.write_text("x")
        path.chmod(0)
        with pytest.raises(ProfileError, match="Permission denied"):
            load(path)
