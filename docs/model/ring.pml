/* The leased ring of triptych/rings/protocol.py and recovery.py, for the model checker spin. README.md tells the rest.
 *
 * Every access to the ring's memory is one step: a read of a state word, a read or a write of half a slot (header,
 * payload: a slot isn't written in one go), a fetch-and-add, a compare-and-swap. What a process makes of the answer
 * belongs to the same step, because nobody else sees it. Between any two steps others move, or a mishap strikes.
 *
 * Names are those of protocol.py; the sizes in use stand in tests/model_checker/configurations.py. Sets of ranks, of slots and
 * of messages are bit masks. What a program can't use any more it forgets (0), which keeps the states few. Every step
 * is printed, and tests/model_checker/replay.py has the real programs do the same. Planted mistakes are marked by #ifdef.
 *
 *      ring.pml         sizes, the ring, what may happen to a process, operations
 *      ledger.pml       what must hold, and the table of transitions
 *      workers.pml      publish, adopt, claim, ack, nack
 *      controller.pml   reap, abandon
 */

/* ---- Sizes ------------------------------------------------------------------------------------------------------- */

#ifndef SLOTS
#define SLOTS 2                 /* or 3 */
#endif
#ifndef MESSAGES_EACH
#define MESSAGES_EACH 1         /* of each of two publishers */
#endif
#ifndef TARGETED
#define TARGETED 0              /* this message is for the first of two consumers only */
#endif
#ifndef ADOPT
#define ADOPT 0                 /* 1: the first consumer comes with work that the controller puts into the ring */
#endif
#ifndef NACKS
#define NACKS 0                 /* 1: consumers may hand back, below the cap; 2: past it too, until they must park */
#endif
#ifndef ATTEMPTS_MAX
#define ATTEMPTS_MAX 2          /* the cap: so many deliveries before a reap takes an entry out */
#endif
#ifndef ATTEMPT_MAX
#define ATTEMPT_MAX 2           /* what the attempt field can hold; 255 in layout.py */
#endif
#ifndef CRASHES
#define CRASHES 0               /* so many die, anywhere; a consumer is followed by one of a new rank */
#endif
#ifndef SUSPICIONS
#define SUSPICIONS 0            /* so many are taken for dead though they live */
#endif
#ifndef CUTS
#define CUTS 0                  /* 1: one loses its connection, and doesn't know whether its last operation landed */
#endif
#ifndef INTERRUPTIONS
#define INTERRUPTIONS 0         /* so many reaps stop half-way and start again */
#endif

#define CONTROLLER 0            /* its rank; publishers have 1 and 2 */
#define FIRST_CONSUMER 3
#define AGAIN (2 * MESSAGES_EACH + CUTS)        /* what a publisher that was cut publishes in doubt: a second copy */
#define ADOPTED (2 * MESSAGES_EACH + CUTS + ADOPT)
#define MESSAGES ADOPTED
#define DELIVERIES_MAX (NACKS == 2 -> ATTEMPT_MAX + 1 : ATTEMPTS_MAX)
#define target_of(message) (message == TARGETED -> FIRST_CONSUMER : 0)

#define bit(member) (1 << (member))
#define has(set, member) ((set) >> (member) & 1)

#if SLOTS == 2
#define in_all(holds) (holds(0) && holds(1))
#define in_any(holds) (holds(0) || holds(1))
#define sum(number) (number(0) + number(1))
#define union(set) (set(0) | set(1))
#else
#define in_all(holds) (holds(0) && holds(1) && holds(2))
#define in_any(holds) (holds(0) || holds(1) || holds(2))
#define sum(number) (number(0) + number(1) + number(2))
#define union(set) (set(0) | set(1) | set(2))
#endif

/* ---- The ring (layout.py) ---------------------------------------------------------------------------------------- */

#define FREE 0
#define WRITING 1
#define READY 2
#define LEASED 3

#define state_word(ticket, attempt, rank, kind) ((((ticket) << 2 | (attempt)) << 3 | (rank)) << 2 | (kind))
#define kind_of(word) ((word) & 3)
#define rank_of(word) ((word) >> 2 & 7)
#define attempt_of(word) ((word) >> 5 & 3)
#define ticket_of(word) ((word) >> 7)
#define FREE_WORD 0

#define slot_header(ticket, target) ((ticket) << 3 | (target))
#define target_in(header) ((header) & 7)
#define ticket_in(header) ((header) >> 3)

short state[SLOTS];
byte header[SLOTS];
byte payload[SLOTS];            /* the message's number */
byte ticket_counter = 1;        /* from 1: 0 is no ticket */

#define is_free(slot) (state[slot] == FREE_WORD)

/* ---- The world, which no program sees ---------------------------------------------------------------------------- */

byte crashed;                   /* ranks that died */
byte fenced;                    /* ranks that the controller cut off for good */
byte reaped;                    /* fenced ranks of which a reap came to its end */
byte doubtful;                  /* ranks that don't know whether they have ended their lease */
byte cut;                       /* the rank that waits for a new connection, 0: none; and the lease that it knows of */
short kept;
byte next_rank = FIRST_CONSUMER + 2;
byte publishers_left = 2 + ADOPT;
bool is_adopting = ADOPT;
short adopted;                  /* the lease that `adopt` returned, and its slot, until the holder has heard of it */
byte adopted_slot;
byte crashes_left = CRASHES;
byte suspicions_left = SUSPICIONS;
byte cuts_left = CUTS;
byte interruptions_left = INTERRUPTIONS;

#define is_over (publishers_left == 0 && in_all(is_free) && (crashed | fenced) == reaped && cut == 0)

#ifdef SIMULATION               /* a random schedule: mishaps are spread over it, and a suspect may sleep for a while */
bool is_due;
byte asleep;
#define mishap(left) (left > 0 && is_due && !is_over)
#define happens(left) left--; is_due = false
#define is_awake (asleep == 0 || asleep != rank)
#define wake_up asleep = 0
#define is_worth(looking) (slot > 0 || looking)         /* else most steps would be looks in vain */
#define is_suspect(one) leaves(one)                     /* else most suspicions would be of idle ones */
#else
#define mishap(left) (left > 0 && !is_over)
#define happens(left) left--
#define is_awake true
#define wake_up skip
#define is_worth(looking) true
#define is_suspect(one) true
#endif

#include "ledger.pml"

/* ---- Operations (program.py) ------------------------------------------------------------------------------------- */

inline read_state(slot, word) {
    word = state[slot];
    printf("@ %d read_state %d %d\n", rank, slot, word)
}

inline read_header(slot, found) {
    found = header[slot];
    printf("@ %d read_header %d %d\n", rank, slot, found)
}

inline read_payload(slot, found) {
    found = payload[slot];
    printf("@ %d read_payload %d %d\n", rank, slot, found)
}

inline write_header(slot, written) {
    header[slot] = written;
    printf("@ %d write_header %d %d\n", rank, slot, header[slot])
}

inline write_payload(slot, written) {
    payload[slot] = written;
    printf("@ %d write_payload %d %d\n", rank, slot, payload[slot])
}

inline fetch_add(before) {
    before = ticket_counter;
    ticket_counter++;
    demand(ticket_counter < 32, "violated: tickets no longer fit into a header of this model\n");
    printf("@ %d fetch_add %d\n", rank, before)
}

inline compare_swap(line, slot, expected, replacement) {
    seen = state[slot];
    printf("@ %d compare_swap %e %d %d %d %d\n", rank, line, slot, expected, replacement, seen);
    if
    :: seen == expected ->
        check_line(line, expected, replacement);
        state[slot] = replacement
    :: else
    fi
}

/* ---- Steps: an operation, or what may happen in its place -----------------------------------------------------------
 *
 * `step`                  the operation, and what the program makes of the answer
 * `step_as_member`        the same, refused to a rank that was fenced. Past the fence reads are answered all the same,
 *                         and so are the compare-and-swaps that end what was begun: stricter than a fence that holds
 * `swap_step`, `swap_step_as_member`   the same of a compare-and-swap: it may also land, and its answer be lost
 *
 * Where a process goes on: `reconnect` after a cut, `gone` after its death or a refusal. `forget` clears its variables,
 * `forget_program` those that don't outlive a call, `known_lease` is the lease that it knows of; all are its own.
 */

#define or_dies \
    :: rank != CONTROLLER && mishap(crashes_left) -> \
        d_step { happens(crashes_left); crashed = crashed | bit(rank); printf("@ %d dies\n", rank); forget }; goto gone

#define is_cut rank != CONTROLLER && !has(fenced, rank) && cut == 0 && mishap(cuts_left)
#define or_is_cut \
    :: is_cut -> d_step { lose_connection }; goto reconnect
#define lose_connection \
    happens(cuts_left); cut = rank; kept = known_lease; doubtful = doubtful | (kept != 0) << rank; forget_program; \
    printf("@ %d raises RingUnreachable\n", rank)

#define or_is_refused \
    :: is_awake && has(fenced, rank) -> d_step { printf("@ %d raises Fenced\n", rank); forget }; goto gone

#define step_when(may_go_on, operation) \
    if \
    :: d_step { is_awake && may_go_on -> operation; nothing_is_lost } \
    or_is_cut or_dies \
    fi

#define step(operation) step_when(true, operation)

#define step_as_member(operation) \
    if \
    :: d_step { is_awake && !has(fenced, rank) -> operation; nothing_is_lost } \
    or_is_refused or_is_cut or_dies \
    fi

#define swap_step(operation, answer) \
    if \
    :: d_step { is_awake -> operation; answer; nothing_is_lost } \
    :: is_cut -> d_step { operation; lose_connection; nothing_is_lost }; goto reconnect \
    or_is_cut or_dies \
    fi

#define swap_step_as_member(operation, answer) \
    if \
    :: d_step { is_awake && !has(fenced, rank) -> operation; answer; nothing_is_lost } \
    :: is_cut -> d_step { operation; lose_connection; nothing_is_lost }; goto reconnect \
    or_is_refused or_is_cut or_dies \
    fi

/* The controller gives the new connection once it has undone what was half done. */
#define wait_for_connection \
    if \
    :: cut != rank && !has(fenced, rank) -> printf("@ %d reconnects\n", rank) \
    or_is_refused or_dies \
    fi

#ifdef PEER_ORDER
#include "peer_order.pml"
#else
#include "workers.pml"
#include "controller.pml"

#ifdef SIMULATION
proctype weather() {
    byte calm = 3;

    do
    :: is_over -> break
    :: atomic { !is_over && calm > 0 -> calm-- }
    :: atomic {
            !is_over && calm == 0 && !is_due ->
            is_due = true;
            if
            :: calm = 1
            :: calm = 3
            :: calm = 6
            :: calm = 10
            fi
        }
    od
}
#endif

init {
    atomic {
        run publisher(1, 1, 2, MESSAGES_EACH);
        run publisher(2, MESSAGES_EACH + 1, MESSAGES_EACH + 2, 2 * MESSAGES_EACH);
        if
        :: ADOPT -> run publisher(CONTROLLER, ADOPTED, ADOPTED + 1, ADOPTED)
        :: else
        fi;
        run consumer(FIRST_CONSUMER);
        run consumer(FIRST_CONSUMER + 1);
        run controller();
#ifdef SIMULATION
        run weather()
#endif
    }
}
#endif

#ifdef LIVENESS
/* Every published message is in the end acked or in the controller's hands, and no slot stays taken. */
#define is_settled ((published & ~(acked | removed)) == 0 && in_all(is_free))
ltl all_ends_well { [] <> is_settled }
#endif
