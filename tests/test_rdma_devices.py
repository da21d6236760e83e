"""The choice of device, port and GID, from a folder like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.errors import InvalidRequest, NoCard
from triptych.rdma_devices import choose, ports

LINK_LOCAL = "fe80:0000:0000:0000:0000:00ff:fe00:0001"
IPV4 = "0000:0000:0000:0000:0000:ffff:c000:0201"
IPV6 = "2001:0db8:0000:0000:0000:0000:0000:0001"
EMPTY = "0000:0000:0000:0000:0000:0000:0000:0000"
ROCE_V1, ROCE_V2 = "IB/RoCE v1", "RoCE v2"


def add_port(
    devices: Path,
    device: str,
    gids: list[tuple[str, str]],
    *,
    number: int = 1,
    state: str = "4: ACTIVE",
    link_layer: str = "Ethernet",
    lid: str = "0x0",
) -> None:
    port = devices / device / "ports" / str(number)
    (port / "gids").mkdir(parents=True)
    (port / "gid_attrs" / "types").mkdir(parents=True)
    for name, text in (("state", state), ("link_layer", link_layer), ("lid", lid)):
        (port / name).write_text(text + "\n")
    for index, (gid, kind) in enumerate(gids):
        (port / "gids" / str(index)).write_text(gid + "\n")
        if gid != EMPTY:
            (port / "gid_attrs" / "types" / str(index)).write_text(kind + "\n")


def test_a_machine_without_devices(tmp_path: Path) -> None:
    assert ports(tmp_path / "absent") == []
    with pytest.raises(NoCard, match="no RDMA device"):
        choose("", [])


@pytest.mark.parametrize(
    ("gids", "index"),
    [
        ([(LINK_LOCAL, ROCE_V1), (LINK_LOCAL, ROCE_V2), (IPV4, ROCE_V1), (IPV4, ROCE_V2)], 3),
        ([(LINK_LOCAL, ROCE_V1), (LINK_LOCAL, ROCE_V2), (IPV6, ROCE_V2), (EMPTY, "")], 2),
        ([(LINK_LOCAL, ROCE_V1), (LINK_LOCAL, ROCE_V2)], 1),
        ([(EMPTY, ""), (LINK_LOCAL, ROCE_V1)], 1),
    ],
)
def test_the_best_gid_on_ethernet(tmp_path: Path, gids: list[tuple[str, str]], index: int) -> None:
    add_port(tmp_path, "mlx5_0", gids)
    place = choose("", ports(tmp_path))
    assert (str(place), place.gid.value.hex()) == (f"mlx5_0:1:{index}", gids[index][0].replace(":", ""))


def test_infiniband_has_a_lid_and_takes_gid_0(tmp_path: Path) -> None:
    add_port(tmp_path, "mlx5_0", [(LINK_LOCAL, ROCE_V1), (IPV6, ROCE_V1)], link_layer="InfiniBand", lid="0x1f")
    place = choose("", ports(tmp_path))
    assert (place.lid, place.gid.index, place.link_layer) == (31, 0, "InfiniBand")


def test_the_first_active_port_is_taken_and_a_setting_goes_before(tmp_path: Path) -> None:
    add_port(tmp_path, "mlx5_0", [(IPV4, ROCE_V2)], state="1: DOWN")
    add_port(tmp_path, "mlx5_1", [(IPV4, ROCE_V2)])
    add_port(tmp_path, "mlx5_1", [(LINK_LOCAL, ROCE_V2), (IPV4, ROCE_V2)], number=2)
    found = ports(tmp_path)
    assert str(choose("", found)) == "mlx5_1:1:0"
    assert str(choose("mlx5_1:2", found)) == "mlx5_1:2:1"
    assert str(choose("mlx5_1:2:0", found)) == "mlx5_1:2:0"
    with pytest.raises(NoCard, match="no port of mlx5_0 is active"):
        choose("mlx5_0", found)
    with pytest.raises(NoCard, match="no usable GID"):
        choose("mlx5_1:1:5", found)


@pytest.mark.parametrize("setting", ["mlx9_0", "mlx5_0:x", "mlx5_0:1:2:3", ":1", "mlx5_0:-1"])
def test_a_setting_that_names_nothing_is_an_error_that_says_what_is_there(tmp_path: Path, setting: str) -> None:
    add_port(tmp_path, "mlx5_0", [(IPV4, ROCE_V2)])
    with pytest.raises(InvalidRequest, match=r"rdma_device is .*mlx5_0"):
        choose(setting, ports(tmp_path))
