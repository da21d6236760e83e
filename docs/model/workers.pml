/* What workers run: publish, claim, ack and nack of protocol.py; and adopt, which the controller runs for one of them.
 * A step ends in a goto although the next one follows: in simulations spin would otherwise run both as one. */

/* ---- publish, and adopt ------------------------------------------------------------------------------------------ */

#ifdef NO_FENCE                 /* a slot write is no compare-and-swap: only the fence stops it */
#define step_of_writer(operation) step(operation)
#else
#define step_of_writer(operation) step_as_member(operation)
#endif

#define written_word state_word(ticket, 0, rank, WRITING)
#define ready_word state_word(ticket, 0, target_of(message), READY)
#define adopted_word state_word(ticket, 0, FIRST_CONSUMER, LEASED)
#define free_at(index) has(free, index)
#define free_before(index) (has(free, index) && index < slot)

#define known_lease 0
#define forget_program free = 0; ticket = 0; slot = 0; seen = 0; message = AGAIN
#define forget forget_program; message = 0; next = 0; last = 0; publishers_left--

/* The ring is full. A worker tries again; the controller doesn't, and the consumer has worked for nothing. */
#define try_later \
    d_step { \
        printf("@ %d raises RingFull\n", rank); \
        ticket = 0; slot = 0; seen = 0; \
        is_adopting = is_adopting && rank != CONTROLLER \
    }; \
    if \
    :: rank != CONTROLLER -> goto look \
    :: rank == CONTROLLER -> d_step { forget }; goto gone \
    fi

/* Publishes `message`, then those from `next` to `last`. As CONTROLLER it adopts what the first consumer works on. */
proctype publisher(byte rank; byte message; byte next; byte last) {
    byte free;                  /* slots, as last seen */
    byte ticket, slot;
    short seen;

look:
    atomic {
        step_when(is_worth(in_any(is_free)),
            if
            :: slot == 0 -> printf("@ %d calls publish %d %d\n", rank, message, target_of(message))
            :: else
            fi;
            read_state(slot, seen);
            free = free | (seen == FREE_WORD) << slot;
            seen = 0;
            slot++
        );
        if
        :: slot < SLOTS -> goto look
        :: slot == SLOTS && free == 0 -> try_later
        :: slot == SLOTS && free != 0 -> slot = 0; goto draw
        fi
    }
draw:
    atomic { step_as_member(fetch_add(ticket)); goto choose }
choose:
    atomic {
        if
        :: has(free, 0) -> slot = 0
        :: has(free, 1) -> slot = 1
#if SLOTS > 2
        :: has(free, 2) -> slot = 2
#endif
        fi;
        printf("@ %d chooses %d %d\n", rank, sum(free_before), sum(free_at));
        swap_step_as_member(
            compare_swap(reserve, slot, FREE_WORD, written_word),
            free = (seen == FREE_WORD -> 0 : free & ~bit(slot)));
        if
        :: seen == FREE_WORD -> goto write
        :: seen != FREE_WORD && free != 0 -> d_step { slot = 0; seen = 0 }; goto choose
        :: seen != FREE_WORD && free == 0 -> try_later
        fi
    }
write:
    atomic { step_of_writer(write_header(slot, slot_header(ticket, target_of(message)))); goto write_on }
write_on:
    atomic { step_of_writer(write_payload(slot, message)); goto let_go }
let_go:
    atomic {
        if
        :: rank != CONTROLLER -> swap_step(
            compare_swap(ready, slot, written_word, ready_word);
            if
            :: seen == written_word -> note_published(message)
            :: else
            fi,
            if
            :: seen == written_word -> printf("@ %d returns %d\n", rank, ticket)
            :: else -> printf("@ %d raises LeaseLost\n", rank); note_lease_lost(); next = last + 1
            fi)
        :: rank == CONTROLLER -> step(
            compare_swap(adopt, slot, written_word, adopted_word);
            note_published(message);
            holder[message] = FIRST_CONSUMER;
            delivered[message] = 1;
            adopted = adopted_word;
            adopted_slot = slot;
            is_adopting = false;
            printf("@ %d returns %d\n", rank, ticket))
        fi;
        if
        :: next <= last -> d_step { forget_program; message = next; next++ }; goto look
        :: next > last -> d_step { forget }; goto gone
        fi
    }
reconnect:
    atomic { wait_for_connection; goto look }
gone:
    skip
}

/* ---- claim, ack, nack -------------------------------------------------------------------------------------------- */

#define is_claimable(word) (kind_of(word) == READY && (rank_of(word) == 0 || rank_of(word) == rank))
#define leased_by(rank, word) (((word) & ~31) | (rank) << 2 | LEASED)
#define is_for_me(slot) is_claimable(state[slot])
#define no_word(index) (words[index] == 0)
#define is_word(index) (words[index] != 0)
#define is_elder(index) (words[index] != 0 && ticket_of(words[index]) < ticket_of(words[slot]))
#define may_nack (NACKS == 2 && attempt_of(held) < ATTEMPT_MAX || NACKS == 1 && attempt_of(held) + 1 < ATTEMPTS_MAX)
#define must_park (NACKS == 2 && attempt_of(held) == ATTEMPT_MAX)
#define nacked_word state_word(ticket_of(held), attempt_of(held) + 1, target_in(found), READY)

inline choose_oldest() {
    slot = 0;
    do
    :: slot < SLOTS && (words[slot] == 0 || sum(is_elder) > 0) -> slot++
    :: else -> break
    od
}

inline forget_words() {
    words[0] = 0;
    words[1] = 0;
#if SLOTS > 2
    words[2] = 0;
#endif
    is_contended = false
}

#undef known_lease
#undef forget_program
#undef forget
#define known_lease held
#define forget_program \
    forget_words(); slot = (held -> slot : 0); message = (held -> message : 0); taken = 0; found = 0; seen = 0
#define forget held = 0; forget_program; rank = next_rank; next_rank++

#ifdef CLAIM_BLINDLY            /* look, then store */
#define swap_claim seen = words[slot]; state[slot] = leased_by(rank, seen); printf("@ %d stores %d\n", rank, slot)
#else
#define swap_claim compare_swap(claim, slot, words[slot], leased_by(rank, words[slot]))
#endif

#ifdef NO_SECOND_LOOK           /* at the state word, after the slot */
#define is_still_leased true
#else
#define is_still_leased (seen == taken)
#endif

inline learn_from_claim() {
    if
    :: seen == words[slot] -> taken = leased_by(rank, seen); forget_words()
    :: else -> words[slot] = (is_claimable(seen) -> seen : 0); is_contended = true; slot = 0
    fi;
    seen = 0
}

/* `_leave` of protocol.py, and then what its caller learns from it. */
inline leave(line, following) {
#ifdef ACK_BLINDLY
    seen = held; state[slot] = following; printf("@ %d stores %d\n", rank, slot);
#else
    compare_swap(line, slot, held, following);
#endif
    if
    :: seen == held ->
        note_let_go(message);
        acked = acked | (line == ack) << message
    :: else
    fi
}

inline learn_from_leave() {
    if
    :: seen == held -> printf("@ %d returns\n", rank)
    :: else -> printf("@ %d raises LeaseLost\n", rank); note_lease_lost()
    fi;
    doubtful = doubtful & ~bit(rank);
    if
    :: seen != held && has(fenced, rank) -> forget
    :: else -> held = 0; forget_program
    fi
}

/* Claims, works, acks or hands back, until all is over. Who died or was fenced is followed by one of a new rank. */
proctype consumer(byte rank) {
    short words[SLOTS];         /* what it may claim, as last seen */
    bool is_contended;          /* it lost a race, so it chooses among the few oldest; here: all */
    byte slot;
    short seen;
    short taken, held;          /* state words: of the lease that it is taking, of the lease that it knows of */
    byte found, message;        /* a slot's header and payload */

    if
    :: ADOPT && rank == FIRST_CONSUMER -> goto resume
    :: else
    fi;
gone:                           /* here the follower begins */
look:
    atomic {
        if
        :: slot == 0 && is_over -> goto end
        :: !(slot == 0 && is_over) -> step_when(is_worth(in_any(is_for_me)),
            if
            :: slot == 0 -> printf("@ %d calls claim\n", rank)
            :: else
            fi;
            read_state(slot, seen);
            words[slot] = (is_claimable(seen) -> seen : 0);
            seen = 0;
            slot++)
        fi;
        if
        :: slot < SLOTS -> goto look
        :: slot == SLOTS && in_all(no_word) -> d_step { slot = 0; printf("@ %d returns nothing\n", rank) }; goto look
        :: slot == SLOTS && in_any(is_word) -> slot = 0; goto choose
        fi
    }
choose:
    atomic {
        if
        :: !is_contended -> d_step { choose_oldest(); skip }
        :: is_contended && words[0] != 0 -> slot = 0
        :: is_contended && words[1] != 0 -> slot = 1
#if SLOTS > 2
        :: is_contended && words[2] != 0 -> slot = 2
#endif
        fi;
        printf("@ %d chooses %d %d\n", rank, sum(is_elder), (is_contended -> sum(is_word) : 1));
        swap_step_as_member(swap_claim, learn_from_claim());
        if
        :: taken != 0 -> goto read
        :: taken == 0 && in_any(is_word) -> goto choose
        :: taken == 0 && in_all(no_word) ->
            d_step { is_contended = false; printf("@ %d returns nothing\n", rank) }; goto look
        fi
    }
read:
    atomic { step(read_header(slot, found)); goto read_on }
read_on:
    atomic { step(read_payload(slot, message)); goto look_again }
look_again:
    atomic {
        step(
            read_state(slot, seen);
            if
            :: is_still_leased && ticket_in(found) == ticket_of(taken) ->
                printf("@ %d returns %d %d %d\n", rank, slot, taken, message);
                note_delivered(message, taken);
                held = taken; taken = 0; found = 0; seen = 0
            :: else -> printf("@ %d raises LeaseLost\n", rank); note_lease_lost(); forget
            fi
        );
        if
        :: held == 0 -> goto look
        :: held != 0 -> goto end_lease
        :: held != 0 && may_nack -> goto hand_back
        fi
    }
end_lease:
    atomic {
        swap_step(
            if
            :: must_park -> printf("@ %d calls nack\n", rank); leave(park, leased_by(CONTROLLER, held))
            :: else -> printf("@ %d calls ack\n", rank); leave(ack, FREE_WORD)
            fi,
            learn_from_leave());
        goto look
    }
hand_back:
    atomic { step(printf("@ %d calls nack\n", rank); read_header(slot, found)); goto hand_back_now }
hand_back_now:
    atomic {
        swap_step(leave(nack, nacked_word), learn_from_leave());
        goto look
    }
reconnect:
    atomic {
        wait_for_connection;
        if
        :: held == 0 -> goto look
        :: held != 0 -> goto end_lease
        :: held != 0 && may_nack -> goto hand_back
        fi
    }
resume:                         /* holding a lease, it waits to hear whether it was adopted, before it connects */
    atomic {
        if
        :: d_step {
                is_awake && !is_adopting ->
                slot = adopted_slot; held = adopted; message = (held -> ADOPTED : 0); adopted = 0; adopted_slot = 0;
                printf("@ %d resumes %d %d %d\n", rank, slot, held, message)
            }
#ifdef CONNECTS_EARLY
        or_is_cut
#endif
        or_dies
        fi;
        if
        :: held == 0 -> goto look
        :: held != 0 -> goto end_lease
        :: held != 0 && may_nack -> goto hand_back
        fi
    }
end:
    skip
}
