"""The binding ibverbs, a wheel that opens the machine's libibverbs, and the only file that imports it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack, closing

import ibverbs
from ibverbs import SGE, QPInfo, QPInitAttr, SendFlags, SendWR

from triptych.rdma_devices import Place
from triptych.rings.verbs import card
from triptych.rings.verbs.card import Rights, Settings, WorkRequest
from triptych.v1.ring_service_pb2 import QueuePairAddress


class IbverbsCard:
    """See `card.Card`."""

    binding = "ibverbs"

    def __init__(self, place: Place) -> None:
        self.place = place
        found = next((device for device in ibverbs.get_device_list() if device.name == place.device), None)
        if found is None:
            raise OSError(errno.ENODEV, f"libibverbs doesn't know {place.device}; is ibverbs-providers installed?")
        self.context = found.open()
        self.mtu_bytes = card.mtu_bytes(self.context.query_port(place.port).active_mtu)
        self.read_atomic_depth = min(self.context.query_device().max_qp_rd_atom, card.READ_ATOMIC_DEPTH_MAX)

    def queue_pair(self, address: int, size_bytes: int, rights: Rights, depth: int) -> IbverbsQueuePair:
        """See `card.Card`."""
        return IbverbsQueuePair(self, address, size_bytes, rights, depth)

    def close(self) -> None:
        """See `card.Card`."""
        self.context.close()


class IbverbsQueuePair:
    """See `card.QueuePair`."""

    def __init__(self, owner: IbverbsCard, address: int, size_bytes: int, rights: Rights, depth: int) -> None:
        self._card = owner
        self._rights = rights
        with ExitStack() as parts:
            domain = parts.enter_context(closing(owner.context.alloc_pd()))
            completions = self._completions = parts.enter_context(closing(owner.context.create_cq(depth)))
            self._region = parts.enter_context(closing(domain.reg_mr(address, size_bytes, int(rights))))
            attributes = QPInitAttr(send_cq=completions, recv_cq=completions, max_send_wr=depth, max_recv_wr=1)
            self._pair = parts.enter_context(closing(domain.create_qp(attributes)))
            self._parts = parts.pop_all()
        self.remote_key = self._region.rkey
        self.address = card.new_address(owner, self._pair.qp_num)

    def connect(self, other: QueuePairAddress, *, initiates: bool) -> None:
        """See `card.QueuePair`."""
        place = self._card.place
        settings = Settings.of(self._card, other)
        self._pair.to_init(place.port, int(self._rights))
        self._pair.to_rtr(
            QPInfo(
                qp_num=other.queue_pair_number,
                psn=other.packet_sequence_number,
                lid=other.lid,
                gid=other.gid,
                port=place.port,
                mtu=settings.mtu_code,
            ),
            sgid_index=place.gid.index,
            mtu=settings.mtu_code,
            hop_limit=card.HOP_LIMIT,
            min_rnr_timer=card.MIN_RNR_TIMER,
            max_dest_rd_atomic=settings.read_atomic_depth,
        )
        if initiates:
            bounds = {"timeout": card.ACK_TIMEOUT, "retry_cnt": card.RETRIES, "rnr_retry": card.RNR_RETRIES}
            self._pair.to_rts(self.address.packet_sequence_number, **bounds, max_rd_atomic=settings.read_atomic_depth)

    def post(self, requests: Sequence[WorkRequest], remote_key: int) -> None:
        """See `card.QueuePair`."""
        last = len(requests) - 1
        self._pair.post_send(
            [
                SendWR(
                    sg_list=[SGE(request.local_address, request.size_bytes, self._region.lkey)],
                    opcode=request.opcode,
                    send_flags=SendFlags.SIGNALED * (number == last) | SendFlags.FENCE * request.is_fenced,
                    remote_addr=request.remote_address,
                    rkey=remote_key,
                    compare_add=request.first,
                    swap=request.second,
                )
                for number, request in enumerate(requests)
            ]
        )

    def poll(self) -> int | None:
        """See `card.QueuePair`."""
        completions = self._completions.poll(1)
        return int(completions[0].status) if completions else None

    def close(self) -> None:
        """See `card.QueuePair`."""
        self._parts.close()
