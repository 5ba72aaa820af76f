#!/bin/sh
# Two ranks with a network between them, on one machine (Linux, root, Open MPI):
#
#     benchmarks/two_machines.sh [RATE] COMMAND...
#     benchmarks/two_machines.sh 1gbit python -m benchmarks.exchanges
#
# Each rank has a network namespace, a host name and a /dev/shm of its own, so that MPI takes them
# for two machines, and sends messages by TCP through a pair of virtual network cards. RATE (of tc's
# tbf) limits how fast these are. A real network takes longer for each message. Each rank has a
# processor of its own.
set -eu

if [ "${1:-}" = --agent ]; then # in place of ssh: mpirun calls it with a host and a command
    shift
    while [ "${1#-}" != "$1" ]; do shift; done
    name=$1
    shift
    exec ip netns exec "llama2np-$name" unshare --uts --mount sh -c \
        "hostname $name; mount -t tmpfs none /dev/shm; $*"
fi

rate=
case ${1:-} in *bit) rate=$1 && shift ;; esac
clean() {
    for name in a b; do
        ip netns del llama2np-$name 2>/dev/null || true
        rm -rf /etc/netns/llama2np-$name
    done
}
trap clean EXIT
clean
ip netns add llama2np-a
ip netns add llama2np-b
ip link add llama2np-a netns llama2np-a type veth peer name llama2np-b netns llama2np-b
for name in a b; do
    case $name in a) address=10.77.0.1 ;; b) address=10.77.0.2 ;; esac
    inside="ip -n llama2np-$name"
    $inside addr add $address/24 dev llama2np-$name
    $inside link set llama2np-$name up
    $inside link set lo up
    mkdir -p /etc/netns/llama2np-$name # `ip netns exec` puts it in place of /etc/hosts
    printf '127.0.0.1 localhost\n10.77.0.1 a\n10.77.0.2 b\n' >/etc/netns/llama2np-$name/hosts
    if [ -n "$rate" ]; then
        tc -n llama2np-$name qdisc add dev llama2np-$name root tbf rate "$rate" burst 16kb latency 50ms
    fi
done
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
variables=$(env | sed -n 's/^\(PYTHON[A-Z]*\|NUMBA_[A-Z_]*\|OPENBLAS_[A-Z_]*\|LLAMA2NP_[A-Z]*\)=.*/-x \1/p')
# shellcheck disable=SC2016,SC2086
ip netns exec llama2np-a unshare --uts sh -c 'hostname a; exec "$@"' sh \
    mpirun --host a:1,b:1 -n 2 --bind-to none --prtemca plm_ssh_agent "$(realpath "$0") --agent" \
    --prtemca prte_if_include 10.77.0.0/24 --mca btl_tcp_if_include 10.77.0.0/24 \
    --mca pml ob1 --mca btl tcp,self $variables \
    sh -c 'exec taskset -c $OMPI_COMM_WORLD_RANK "$@"' sh "$@"
