"""The binding pyverbs, and the only file that imports it. It must be of the machine's own rdma-core."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.enums import IBV_QPT_RC, IBV_SEND_FENCE, IBV_SEND_SIGNALED
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from triptych.rdma_devices import Place
from triptych.rings.verbs import card
from triptych.rings.verbs.card import Opcode, Rights, Settings, WorkRequest
from triptych.v1.ring_service_pb2 import QueuePairAddress


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise pyverbs' errors as OSErrors."""
    try:
        yield
    except PyverbsError as error:
        raise OSError(getattr(error, "error_code", 0), str(error)) from error


class PyverbsCard:
    """See `card.Card`."""

    binding = "pyverbs"

    def __init__(self, place: Place) -> None:
        self.place = place
        with _os_errors():
            self.context = Context(name=place.device)
            attributes = self.context.query_device()
            self.mtu_bytes = card.mtu_bytes(self.context.query_port(place.port).active_mtu)
        depths = (attributes.max_qp_rd_atom, attributes.max_qp_init_rd_atom, card.READ_ATOMIC_DEPTH_MAX)
        self.read_atomic_depth = min(depths)
        if not attributes.atomic_caps:
            raise OSError(0, f"{place.device} has no atomics")

    def queue_pair(self, address: int, size_bytes: int, rights: Rights, depth: int) -> PyverbsQueuePair:
        """See `card.Card`."""
        return PyverbsQueuePair(self, address, size_bytes, rights, depth)

    def close(self) -> None:
        """See `card.Card`."""
        self.context.close()


class PyverbsQueuePair:
    """See `card.QueuePair`."""

    def __init__(self, owner: PyverbsCard, address: int, size_bytes: int, rights: Rights, depth: int) -> None:
        self._card = owner
        self._rights = rights
        with _os_errors(), ExitStack() as parts:
            domain = parts.enter_context(closing(PD(owner.context)))
            self._completions = parts.enter_context(closing(CQ(owner.context, depth)))
            self._region = parts.enter_context(closing(MR(domain, size_bytes, int(rights), address=address)))
            cap = QPCap(max_send_wr=depth, max_recv_wr=1, max_send_sge=1, max_recv_sge=1, max_inline_data=0)
            queues = {"scq": self._completions, "rcq": self._completions}
            # By default every request gives a completion; `post` promises one for each list.
            attributes = QPInitAttr(qp_type=IBV_QPT_RC, cap=cap, sq_sig_all=0, **queues)
            self._pair = parts.enter_context(closing(QP(domain, attributes)))
            self._parts = parts.pop_all()
        self.remote_key = self._region.rkey
        self.address = card.new_address(owner, self._pair.qp_num)

    def connect(self, other: QueuePairAddress, *, initiates: bool) -> None:
        """See `card.QueuePair`."""
        place = self._card.place
        settings = Settings.of(self._card, other)
        route = GlobalRoute(dgid=GID(other.gid.hex(":", 2)), sgid_index=place.gid.index, hop_limit=card.HOP_LIMIT)
        attributes = QPAttr()
        attributes.ah_attr = AHAttr(dlid=other.lid, is_global=settings.is_global, port_num=place.port, gr=route)
        attributes.port_num = place.port
        attributes.pkey_index = 0
        attributes.qp_access_flags = int(self._rights)
        attributes.path_mtu = settings.mtu_code
        attributes.dest_qp_num = other.queue_pair_number
        attributes.rq_psn = other.packet_sequence_number
        attributes.sq_psn = self.address.packet_sequence_number
        attributes.max_rd_atomic = settings.read_atomic_depth
        attributes.max_dest_rd_atomic = settings.read_atomic_depth
        attributes.timeout = card.ACK_TIMEOUT
        attributes.retry_cnt = card.RETRIES
        attributes.rnr_retry = card.RNR_RETRIES
        attributes.min_rnr_timer = card.MIN_RNR_TIMER
        with _os_errors():
            self._pair.to_rts(attributes) if initiates else self._pair.to_rtr(attributes)

    def post(self, requests: Sequence[WorkRequest], remote_key: int) -> None:
        """See `card.QueuePair`."""
        works = [self._work(request, remote_key) for request in requests]  # pyverbs keeps none of the list alive
        for work, following in itertools.pairwise(works):
            work.next_wr = following
        works[-1].send_flags |= IBV_SEND_SIGNALED
        with _os_errors():
            self._pair.post_send(works[0])

    def poll(self) -> int | None:
        """See `card.QueuePair`."""
        with _os_errors():
            count, completions = self._completions.poll(1)
        return completions[0].status if count else None

    def close(self) -> None:
        """See `card.QueuePair`."""
        with _os_errors():
            self._parts.close()

    def _work(self, request: WorkRequest, remote_key: int) -> SendWR:
        piece = SGE(request.local_address, request.size_bytes, self._region.lkey)
        flags = IBV_SEND_FENCE if request.is_fenced else 0
        work = SendWR(opcode=int(request.opcode), num_sge=1, sg=[piece], send_flags=flags)
        if request.opcode in (Opcode.READ, Opcode.WRITE):
            work.set_wr_rdma(remote_key, request.remote_address)
        else:
            work.set_wr_atomic(remote_key, request.remote_address, request.first, request.second)
        return work
