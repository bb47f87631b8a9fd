#!/bin/sh
# Run connectrpc's gRPC conformance suite against the server. Needs Go (for the suite) and
# grpcio-tools (for its messages). Arguments are passed on to connectconformance, e.g.
# --run '**/unary/**' -v. The suite is installed below $CONFORMANCE_HOME, by default
# ${TMPDIR:-/tmp}/connectconformance.
set -eu
version=v1.0.5
here=$(cd "$(dirname "$0")" && pwd)
home=${CONFORMANCE_HOME:-${TMPDIR:-/tmp}/connectconformance}
python=${PYTHON:-python}

mkdir -p "$home"
if [ ! -x "$home/connectconformance" ]; then
    GOBIN=$home go install "connectrpc.com/conformance/cmd/connectconformance@$version"
fi
if [ ! -d "$home/messages" ]; then
    protos=$(go env GOMODCACHE)/connectrpc.com/conformance@$version/proto
    mkdir "$home/messages.new"
    "$python" -m grpc_tools.protoc -I "$protos" --python_out "$home/messages.new" \
        "$protos"/connectrpc/conformance/v1/config.proto \
        "$protos"/connectrpc/conformance/v1/service.proto \
        "$protos"/connectrpc/conformance/v1/server_compat.proto
    mv "$home/messages.new" "$home/messages"
fi
PYTHONPATH=$home/messages:$here/../.. exec "$home/connectconformance" --mode server \
    --conf "$here/config.yaml" --known-failing "@$here/known-failing.txt" "$@" \
    -- "$python" "$here/conformance_server.py"
