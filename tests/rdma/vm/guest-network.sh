# Two RoCE devices on one wire, in one network namespace: rxe0 192.0.2.1 and rxe1 192.0.2.2.
#
# Before Linux 6.16 rdma_rxe knows the first namespace only, so both ends of the wire have to be in it. There a packet
# from one of the machine's addresses to the other would never reach the wire: routing looks into the table `local`
# before all others and delivers it at once. So this table is asked later here, and two rules come before it that send
# these packets, and no others, out on their device. What arrives on a device is for the machine itself, as always.

# Nor does the machine take a packet from outside whose sender is one of its own addresses.
echo 1 > /proc/sys/net/ipv4/conf/all/accept_local
# Without IPv6, index 1 of each device's GID table is its IPv4 address (RoCEv2).
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6

# An MTU of 4200 holds RoCE's largest packet: 4096 bytes and their headers. The neighbours are written down, because
# the machine would not answer when it asks itself for a hardware address.
ip -batch - << 'EOF'
link set lo up
link add wire0 mtu 4200 address 02:00:00:00:00:01 type veth peer name wire1 mtu 4200 address 02:00:00:00:00:02
link set wire0 up
link set wire1 up
address add 192.0.2.1/24 dev wire0
address add 192.0.2.2/24 dev wire1
neighbour replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev wire0 nud permanent
neighbour replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev wire1 nud permanent
route add 192.0.2.2 dev wire0 table 100
route add 192.0.2.1 dev wire1 table 101
rule add priority 1 iif wire0 lookup local
rule add priority 2 iif wire1 lookup local
rule add priority 3 from 192.0.2.1 to 192.0.2.2 lookup 100
rule add priority 4 from 192.0.2.2 to 192.0.2.1 lookup 101
rule add priority 5 lookup local
rule delete priority 0
EOF

rdma link add rxe0 type rxe netdev wire0
rdma link add rxe1 type rxe netdev wire1
