#!/bin/sh
# tritonserver with the options given, its model-loading API open to whoever has the key: a model may
# run code. Without TRITONRAG_ADMIN_KEY the key is a random one that nobody knows.
set -eu
random=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
key="model-repository:tritonrag-key=${TRITONRAG_ADMIN_KEY:-$random}"
exec tritonserver "$@" "--http-restricted-api=$key" "--grpc-restricted-protocol=$key"
