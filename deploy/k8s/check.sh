#!/bin/sh
# Renders deploy/k8s and checks what comes out, and the Dockerfile. Needs kubectl or kustomize; the other tools come from PyPI.
set -eu
cd "$(dirname "$0")/../.."
out=.local/k8s
tools=$out/venv
mkdir -p "$out"

uv --version >/dev/null 2>&1 || PATH=$PWD/.local/uv/bin:$PATH  # where `make` put it
if ! cmp -s deploy/k8s/tools.txt "$out/tools.txt"; then
    echo "  tools: into $tools"
    uv venv --quiet --clear "$tools"
    uv pip sync --quiet --python "$tools" deploy/k8s/tools.txt
    cp deploy/k8s/tools.txt "$out/tools.txt"
fi

for folder in base overlays/production; do
    rendered=$out/$(basename "$folder").yaml
    sh deploy/k8s/render.sh "deploy/k8s/$folder" >"$rendered"
    echo "  $folder: kubernetes-validate"  # it knows no custom resources, and says so for each
    "$tools/bin/kubernetes-validate" --kubernetes-version 1.34 --strict --quiet "$rendered"
done
echo "  overlays/production: checkov"
"$tools/bin/checkov" --config-file deploy/k8s/checkov.yaml --framework kubernetes --file "$out/production.yaml"
echo "  deploy/Dockerfile: checkov, hadolint"
"$tools/bin/checkov" --config-file deploy/k8s/checkov.yaml --framework dockerfile --file deploy/Dockerfile
"$tools/bin/hadolint" deploy/Dockerfile
PARLEY_KUSTOMIZE_REQUIRED=1 .venv/bin/python -m pytest tests/deploy
