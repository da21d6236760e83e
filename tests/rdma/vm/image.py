"""The guest's kernel and its first, small root filesystem: made from Debian's packages, kept in the cache.

The packages are downloaded and unpacked; nothing of them is installed on the host.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import struct
import tempfile
from pathlib import Path

from host import VmError, cache_folder, refresh_package_lists, run, say

KERNEL_PACKAGE = "linux-image-amd64"
"""Debian's usual kernel. Its cloud flavour has neither rdma_rxe nor 9p."""
KERNEL_VERSION = "6.1."
"""Debian 12's. In 6.12, from its backports, processes that poll starve rdma_rxe on a guest of two CPUs."""
SHELL_PACKAGE = "busybox-static"
"""All commands of `guest-init.sh`, which runs before the host's root is there, in one program without libraries."""
MODULES = (
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"),  # the host's files, the command's output
    *("crc32_generic", "veth", "sch_netem", "ib_uverbs", "rdma_ucm", "rdma_rxe"),  # a wire, faults for it, verbs
)
"""What the guest's kernel loads."""
SOURCES = (Path(__file__), Path(__file__).with_name("guest-init.sh"))
"""What an image follows from, beside the packages: when one of them changes, the next run builds another image."""


def find_or_build() -> Path:
    """Return the folder that holds `vmlinux` and `initramfs`; where it isn't in the cache, build it first."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()
    image = cache_folder() / f"image-{digest[:12]}"
    if image.exists():
        return image
    say(f"building {image}, once")
    with tempfile.TemporaryDirectory(prefix="building-", dir=image.parent) as name:
        folder = Path(name)
        for package in download(folder):
            run("dpkg-deb", "--extract", str(package), str(folder / "unpacked"))
        build(folder / "unpacked", folder / "image")
        if not image.exists():  # else another builder was faster
            (folder / "image").rename(image)
    return image


def download(folder: Path) -> list[Path]:
    """Let apt put the packages of kernel and shell into a folder."""
    refresh_package_lists()
    kernel = re.search(r"Depends: linux-image-(\S+)", run("apt-cache", "depends", KERNEL_PACKAGE))
    if not kernel or not kernel[1].startswith(KERNEL_VERSION):
        raise VmError(f"apt offers {kernel[1] if kernel else 'no kernel'}, and the guest needs {KERNEL_VERSION}x")
    run("apt-get", "download", f"linux-image-{kernel[1]}", SHELL_PACKAGE, folder=folder)
    return list(folder.glob("*.deb"))


def build(unpacked: Path, image: Path) -> None:
    """Make the folder `image` from the unpacked packages."""
    image.mkdir()
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    (image / "vmlinux").write_bytes(vmlinux(kernel.read_bytes()))
    modules = {path.stem.replace("-", "_"): path.read_bytes() for path in unpacked.glob("lib/modules/**/*.ko")}
    order = load_order(modules)
    files = {
        "init": SOURCES[1].read_bytes(),
        "bin": None,
        "bin/busybox": (unpacked / "bin" / "busybox").read_bytes(),
        "modules": None,
        "modules/order": "".join(f"{name}\n" for name in order).encode(),
        **{f"modules/{name}.ko": modules[name] for name in order},
    }
    (image / "initramfs").write_bytes(cpio(files))


def vmlinux(bzimage: bytes) -> bytes:
    """Return the ELF file in a compressed kernel, which QEMU can start as it is: unpacking in the guest takes long.

    The offsets are those of https://docs.kernel.org/arch/x86/boot.html: setup_sects, payload_offset, payload_length.
    """
    setup_bytes = (bzimage[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    payload = bzimage[setup_bytes + offset : setup_bytes + offset + length]
    return lzma.LZMADecompressor().decompress(payload)  # and not lzma.decompress: four bytes more follow


def load_order(modules: dict[str, bytes]) -> list[str]:
    """Return `MODULES` and what they depend on, each module after its own dependencies."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        if name not in modules:
            raise VmError(f"the guest's kernel has no module {name}")
        depends = re.search(rb"\0depends=([^\0]*)\0", modules[name])
        for dependency in depends[1].decode().split(",") if depends and depends[1] else ():
            add(dependency.replace("-", "_"))
        order.append(name)

    for name in MODULES:
        add(name)
    return order


def cpio(files: dict[str, bytes | None]) -> bytes:
    """Return an archive of files, all of them executable; None instead of bytes makes a folder.

    The format is `newc` of https://docs.kernel.org/driver-api/early-userspace/buffer-format.html, written here because
    Debian installs no cpio by itself.
    """
    archive = bytearray()
    for inode, (name, content) in enumerate((*files.items(), ("TRAILER!!!", b"")), 1):
        mode = 0o040755 if content is None else 0o100755
        path, data = name.encode() + b"\0", content or b""
        header = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in header) + path, data):
            archive += part + bytes(-(len(archive) + len(part)) % 4)
    return bytes(archive)
