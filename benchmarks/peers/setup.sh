#!/bin/sh
# An environment of its own for mmsegmentation and SSSegmentation:  sh benchmarks/peers/setup.sh FOLDER
# A library is compared with it fairly only under the same torch: pass a version as second argument to pin one.
set -e
folder=${1:?usage: setup.sh FOLDER [TORCH_VERSION]}
here=$(dirname "$0")
python3 -m venv "$folder"
pip="$folder/bin/python -m pip"
if [ -n "$2" ]; then $pip install "torch==$2" torchvision; else $pip install torch torchvision; fi
$pip install -r "$here/requirements.txt"
# Without their declared dependencies: they pin an old numpy or want compilers, a GPU or a display.
$pip install --no-deps mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 mmpretrain==1.2.0
$pip install --no-deps --no-build-isolation sssegmentation==1.7.0
"$folder/bin/python" "$here/mmseg_peer.py" --help > /dev/null
"$folder/bin/python" "$here/ssseg_peer.py" --help > /dev/null
echo "ready: $folder/bin/python"
