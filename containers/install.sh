#!/bin/sh
# Installs prismfl, and Flower without its simulation, into a new environment $1, from the sources in this folder.
# It has neither pip nor a compiler in it.  TORCH_INDEX: where torch's processor build is; empty for pip's own index.
set -eu
place=$1
# torch goes first: asked for by a range, its largest build would come.
torch=$(grep '^torch==' constraints.txt)
python3 -m venv --without-pip "$place"
into() {
    python3 -m pip --python "$place/bin/python" install --no-cache-dir --disable-pip-version-check -c constraints.txt "$@"
}
into ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
into . flwr pydantic
# What nothing here reads: headers, tests, and symbols of libraries.
site=$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site/torch/include" "$site/torch/test"
find "$site/torch/bin" -type f ! -name torch_shm_manager -delete
find "$site" -type d -name tests -prune -exec rm -rf {} +
find "$site/opendp" -name '*.so' -exec strip --strip-unneeded {} +
