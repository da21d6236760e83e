/* What must hold, kept in a book beside the ring: no program sees it. The same as tests/sim/ledger.py. */

byte published;                 /* messages whose `ready` or `adopt` succeeded */
byte acked;
byte removed;                   /* messages that the controller took out and has */
byte holder[MESSAGES + 1];      /* the rank that was given the message and hasn't let go; 0: nobody */
byte delivered[MESSAGES + 1];   /* how often */

#define violated(what) printf(what); assert(false)
#define demand(holds, what) if :: (holds) :: else -> violated(what) fi

/* A published message is acked, or with the controller, or whole in a slot that is READY or LEASED. */
#define is_whole(slot) (kind_of(state[slot]) >= READY && ticket_of(state[slot]) == ticket_in(header[slot]))
#define carried(slot) (is_whole(slot) << payload[slot])
#define nothing_is_lost demand((published & ~(acked | removed | union(carried))) == 0, "violated: a message is lost\n")

inline note_published(which) {
    demand(header[slot] == slot_header(ticket, target_of(which)), "violated: published torn\n");
    demand(payload[slot] == which, "violated: published torn\n");
    published = published | bit(which)
}

inline note_delivered(which, word) {
    demand(has(published, which), "violated: delivered what was never published\n");
    demand(!has(acked, which), "violated: delivered after its ack\n");
    demand(!has(removed, which), "violated: delivered after its removal\n");
    demand(holder[which] == 0 || has(fenced, holder[which]), "violated: two live leases\n");
    demand(target_of(which) == 0 || target_of(which) == rank, "violated: delivered to another than its target\n");
    demand(delivered[which] <= attempt_of(word), "violated: a fencing token was given out twice\n");
    delivered[which]++;
    demand(delivered[which] <= DELIVERIES_MAX, "violated: delivered past the cap\n");
    holder[which] = rank
}

inline note_let_go(which) {
    demand(holder[which] == rank, "violated: a stale ack or nack was taken\n");
    holder[which] = 0
}

inline note_lease_lost() {
    demand(has(fenced | doubtful, rank), "violated: a lease lost by one that nobody took for dead\n")
}

inline note_taken_out(which) {
    demand(has(published, which) && !has(acked | removed, which), "violated: took out what was not there\n");
    holder[which] = 0;
    removed = removed | bit(which)
}

/* ---- TABLE of protocol.py: tests/model_checker/test_table.py compares line by line --------------------------------------- */

mtype = { reserve, ready, adopt, claim, ack, nack, park, abandon, redeliver, drop, refuse };

#define is_next(attempt_step) (attempt_of(after) == attempt_of(before) + attempt_step)
#define is_same_entry (ticket_of(after) == ticket_of(before))
#define changes(source, target, attempt_step) \
    (kind_of(before) == source && kind_of(after) == target && \
    (target == FREE || is_next(attempt_step) && (source == FREE || is_same_entry)))

inline check_line(line, before, after) {
    if
    :: line == reserve   && changes(FREE,    WRITING, 0)
    :: line == ready     && changes(WRITING, READY,   0)
    :: line == adopt     && changes(WRITING, LEASED,  0)
    :: line == claim     && changes(READY,   LEASED,  0)
    :: line == ack       && changes(LEASED,  FREE,    0)
    :: line == nack      && changes(LEASED,  READY,   1)
    :: line == park      && changes(LEASED,  LEASED,  0)
    :: line == abandon   && changes(WRITING, FREE,    0)
    :: line == redeliver && changes(LEASED,  READY,   1)
    :: line == drop      && changes(LEASED,  FREE,    0)
    :: line == refuse    && changes(READY,   FREE,    0)
#ifdef TABLE_UNCHECKED          /* a planted mistake must be caught by what it breaks, not by its looks */
    :: else
#else
    :: else -> violated("violated: a change along no line of the table\n")
#endif
    fi
}
