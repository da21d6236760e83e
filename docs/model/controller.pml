/* What the controller runs for others: reap and abandon of recovery.py. It fences whom it takes for dead, and reaps;
 * and again, where something turns up later that is a dead rank's. A rank that was cut it gives a new connection. */

#define is_parked(word) (kind_of(word) == LEASED && rank_of(word) == CONTROLLER)
#define concerns_dead(word, one) \
    (is_parked(word) || one != 0 && kind_of(word) != FREE && rank_of(word) == one)
#if defined KEPT_TAKEN_BACK     /* also what the rank knows of, and works on */
#define may_take_back(word) true
#elif defined NOTHING_ABANDONED
#define may_take_back(word) false
#else
#define may_take_back(word) (word != kept)
#endif
#define is_half_done(word) \
    ((kind_of(word) == WRITING || kind_of(word) == LEASED) && rank_of(word) == cut && may_take_back(word))
#define concerns(word) (is_abandoning -> is_half_done(word) : concerns_dead(word, dead))

#if SLOTS == 2
#define leaves(one) (concerns_dead(state[0], one) || concerns_dead(state[1], one))
#else
#define leaves(one) (concerns_dead(state[0], one) || concerns_dead(state[1], one) || concerns_dead(state[2], one))
#endif
#ifdef REAP_ONCE                /* nobody looks again for what is published for a dead rank */
#define must_reap_again(one) false
#else
#define must_reap_again(one) leaves(one)
#endif
#define must_fence(one) (has(crashed, one) || mishap(suspicions_left) && is_suspect(one))
#define must_reap(one) (has(fenced, one) -> !has(reaped, one) || must_reap_again(one) : must_fence(one))
#define may_reap(one) !is_adopting && one < next_rank && must_reap(one) -> dead = one

#define cap (is_abandoning -> ATTEMPT_MAX : ATTEMPTS_MAX)
#define is_spent(word) \
    (rank_of(word) == CONTROLLER || attempt_of(word) + 1 >= cap || dead != 0 && target_in(headers[slot]) == dead)

#ifdef SAME_ATTEMPT
#define following(attempt) (attempt)
#else
#define following(attempt) ((attempt) + 1)
#endif
#define redelivered_word \
    state_word(ticket_of(found[slot]), following(attempt_of(found[slot])), target_in(headers[slot]), READY)

inline forget_slots() {
    found[0] = 0; headers[0] = 0; payloads[0] = 0;
    found[1] = 0; headers[1] = 0; payloads[1] = 0;
#if SLOTS > 2
    found[2] = 0; headers[2] = 0; payloads[2] = 0;
#endif
}

inline next_concerned(from) {
    slot = from;
    do
    :: slot < SLOTS && found[slot] == 0 -> slot++
    :: else -> break
    od
}

#ifdef REMOVAL_FORGOTTEN        /* the answer of a reap that stops is lost, and with it what it took out */
byte unreported;
#define note_unreported unreported = unreported | bit(payloads[slot])
#define lose_answer removed = removed & ~unreported; unreported = 0
#define report unreported = 0
#else
#define note_unreported skip
#define lose_answer skip
#define report skip
#endif

inline undo(line, following_word) {
    compare_swap(line, slot, found[slot], following_word);
    if
    :: seen == found[slot] && line == redeliver && !is_abandoning -> holder[payloads[slot]] = 0
    :: seen == found[slot] && (line == drop || line == refuse) -> note_taken_out(payloads[slot]); note_unreported
    :: else                     /* abandoned; or an ack that was on its way arrived first */
    fi;
    seen = 0; found[slot] = 0; headers[slot] = 0; payloads[slot] = 0
}

#undef forget_program
#define forget_program is_abandoning = false; dead = 0; slot = 0; seen = 0; forget_slots()

inline begin_undoing() {
    if
    :: is_abandoning -> printf("@ %d calls abandon %d %d\n", rank, cut, kept)
    :: dead != 0 && !has(fenced, dead) ->
        if
        :: has(crashed, dead)
        :: else -> happens(suspicions_left)
        fi;
        fenced = fenced | bit(dead);
        cut = (cut == dead -> 0 : cut);
        printf("@ %d calls reap %d\n", rank, dead)
    :: else -> printf("@ %d calls reap %d\n", rank, dead)
    fi
}

inline end_undoing() {
    printf("@ %d returns\n", rank);
    report;
    wake_up;
    if
    :: is_abandoning -> cut = 0; kept = 0
    :: dead != 0 -> reaped = reaped | bit(dead)
    :: else
    fi;
    forget_program
}

#define step_or_stop(operation) \
    if \
    :: d_step { operation; nothing_is_lost } \
    :: mishap(interruptions_left) -> \
        d_step { \
            happens(interruptions_left); printf("@ %d stops\n", rank); lose_answer; forget_program; nothing_is_lost \
        }; goto watch \
    fi

proctype controller() {
    byte rank = CONTROLLER;
    byte dead, slot;
    bool is_abandoning;
    short seen;
    short found[SLOTS];         /* words of the slots concerned, and their contents */
    byte headers[SLOTS];
    byte payloads[SLOTS];

watch:
    atomic {
        if
        :: is_over -> goto end
        :: !is_adopting && cut != 0 -> is_abandoning = true
        :: !is_adopting && leaves(CONTROLLER) -> dead = CONTROLLER
        :: may_reap(1)
        :: may_reap(2)
        :: may_reap(3)
        :: may_reap(4)
        :: may_reap(5)
        :: may_reap(6)
        :: may_reap(7)
        fi;
        d_step { begin_undoing() };
#ifdef SIMULATION               /* it may sleep until it is reaped: else it seldom comes late */
        if
        :: asleep = dead
        :: asleep = 0
        fi;
#endif
        goto look
    }
look:
    atomic {
        step_or_stop(
            read_state(slot, seen);
            found[slot] = (concerns(seen) -> seen : 0);
            seen = 0;
            slot++
        );
        if
        :: slot < SLOTS -> goto look
        :: slot == SLOTS -> next_concerned(0)
        fi;
        if
        :: slot < SLOTS -> goto read
        :: slot == SLOTS -> d_step { end_undoing() }; goto watch
        fi
    }
read:
    atomic { step_or_stop(read_header(slot, headers[slot])); goto read_on }
read_on:
    atomic {
        step_or_stop(read_payload(slot, payloads[slot]); next_concerned(slot + 1));
        if
        :: slot < SLOTS -> goto read
        :: slot == SLOTS -> next_concerned(0); goto swap
        fi
    }
swap:
    atomic {
        step_or_stop(
            if
#ifdef HALF_WRITTEN_LEFT
            :: kind_of(found[slot]) == WRITING -> found[slot] = 0
#else
            :: kind_of(found[slot]) == WRITING -> undo(abandon, FREE_WORD)
#endif
            :: kind_of(found[slot]) == READY -> undo(refuse, FREE_WORD)
            :: kind_of(found[slot]) == LEASED && is_spent(found[slot]) -> undo(drop, FREE_WORD)
            :: kind_of(found[slot]) == LEASED && !is_spent(found[slot]) -> undo(redeliver, redelivered_word)
            fi;
            next_concerned(slot + 1)
        );
        if
        :: slot < SLOTS -> goto swap
        :: slot == SLOTS -> d_step { end_undoing() }; goto watch
        fi
    }
end:
    skip
}
