#!/usr/bin/env python3
"""Packs a root file system into an OCI image archive of one layer, without a container engine.

Everything in it belongs to root and has no date, so that the same files make the same image.
A file capability goes into the layer as the PAX record that container runtimes turn into the
file's attribute again; no privilege is needed here.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import stat
import struct
import sys
import tarfile
from pathlib import Path

CAPABILITIES = {"cap_net_admin": 12}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def capability(name: str) -> str:
    """The attribute `security.capability` that permits one capability and makes it effective."""
    revision_2, effective = 0x02000000, 0x1
    low = 1 << CAPABILITIES[name]
    return struct.pack("<IIIII", revision_2 | effective, low, 0, 0, 0).decode("latin-1")


def layer(root: Path, capabilities: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            entry = tarfile.TarInfo(name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
                tar.addfile(entry)
            elif stat.S_ISDIR(mode):
                entry.type, entry.mode = tarfile.DIRTYPE, stat.S_IMODE(mode)
                tar.addfile(entry)
            else:
                content = path.read_bytes()
                entry.size = len(content)
                entry.mode = 0o755 if mode & stat.S_IXUSR else 0o644
                if wanted := capabilities.pop("/" + name, None):
                    entry.pax_headers["SCHILY.xattr.security.capability"] = capability(wanted)
                tar.addfile(entry, io.BytesIO(content))
    if capabilities:
        sys.exit(f"--capability: not in {root}: {', '.join(capabilities)}")
    return out.getvalue()


def digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def pairs(given: list[str], flag: str) -> dict[str, str]:
    for item in given:
        if "=" not in item:
            sys.exit(f"{flag} {item}: KEY=VALUE is allowed")
    return dict(item.split("=", 1) for item in given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the root file system, a directory")
    parser.add_argument("output", type=Path, help="the archive to write")
    parser.add_argument("--name", required=True, help="the image's name with its tag")
    parser.add_argument("--entrypoint", action="append", default=[], help="a word of it; repeat")
    parser.add_argument("--cmd", action="append", default=[], help="a word of its arguments; repeat")
    parser.add_argument("--user", default="0")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--capability", action="append", default=[], metavar="PATH=CAPABILITY")
    args = parser.parse_args()
    if ":" not in args.name.rsplit("/", 1)[-1]:
        sys.exit(f"--name {args.name}: a name with a tag is allowed, such as localhost/viaduct:dev")

    where = {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}
    plain = layer(args.root, pairs(args.capability, "--capability"))
    packed = gzip.compress(plain, compresslevel=1, mtime=0)
    labels = pairs(args.label, "--label")
    config = json.dumps({
        **where,
        "config": {
            "Entrypoint": args.entrypoint,
            "Cmd": args.cmd,
            "User": args.user,
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", *args.env],
            "Labels": labels,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
    }).encode()
    kind = "application/vnd.oci.image."
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": kind + "manifest.v1+json",
        "config": {"mediaType": kind + "config.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": kind + "layer.v1.tar+gzip", "digest": digest(packed), "size": len(packed)}],
        "annotations": labels,
    }).encode()
    index = json.dumps({
        "schemaVersion": 2,
        "mediaType": kind + "index.v1+json",
        "manifests": [{
            "mediaType": kind + "manifest.v1+json",
            "digest": digest(manifest),
            "size": len(manifest),
            "platform": where,
            "annotations": {
                "io.containerd.image.name": args.name,
                "org.opencontainers.image.ref.name": args.name.rsplit(":", 1)[1],
            },
        }],
    }).encode()
    blobs = {"blobs/sha256/" + digest(b).removeprefix("sha256:"): b for b in (packed, config, manifest)}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **blobs}
    whole = args.output.with_name(args.output.name + ".tmp")
    with tarfile.open(whole, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    whole.rename(args.output)


main()
