/* The order of the nearest system in the field, instead of ours: slots tied to a head and a tail, and no state words.
 * Publish: read the tail, write the slot that it names, add to the tail.
 * Claim: read head and tail, read the slot, move the head by compare-and-swap. Then nothing shows that it was taken.
 */

byte head, tail;
byte in_hand;                   /* messages that a living consumer works on */

#define is_in_ring(index, message) (head <= index && index < tail && payload[index % SLOTS] == message)
#define is_there(message) (is_in_ring(0, message) || is_in_ring(1, message) || has(acked | in_hand, message))
#define nothing_is_gone \
    demand((!has(published, 1) || is_there(1)) && (!has(published, 2) || is_there(2)), "violated: a message is lost\n")

proctype publisher(byte rank; byte message) {
    byte seen;

    d_step { seen = tail; printf("@ %d reads the tail: %d\n", rank, seen) };
    d_step {
        payload[seen % SLOTS] = message;
        printf("@ %d writes message %d to slot %d\n", rank, message, seen % SLOTS)
    };
    d_step {
        tail++;
        published = published | bit(message);
        printf("@ %d adds 1 to the tail: it is %d, message %d is published\n", rank, tail, message);
        nothing_is_gone
    }
}

proctype consumer(byte rank) {
    byte seen, end, message;

    do
    :: d_step { seen = head; printf("@ %d reads the head: %d\n", rank, seen) };
        d_step { end = tail; printf("@ %d reads the tail: %d\n", rank, end) };
        if
        :: seen == end
        :: seen < end ->
            d_step {
                message = payload[seen % SLOTS];
                printf("@ %d reads message %d from slot %d\n", rank, message, seen % SLOTS)
            };
            d_step {
                if
                :: head == seen -> head++; in_hand = in_hand | bit(message)
                :: else -> message = 0
                fi;
                printf("@ %d swaps the head, expecting %d: it is %d\n", rank, seen, head);
                nothing_is_gone
            };
            if
            :: message != 0 ->
                if
                :: d_step { acked = acked | bit(message); in_hand = in_hand & ~bit(message); message = 0 }
                :: crashes_left > 0 -> d_step {
                        crashes_left--; in_hand = in_hand & ~bit(message);
                        printf("@ %d dies at work on message %d\n", rank, message);
                        nothing_is_gone
                    }; break
                fi
            :: message == 0
            fi
        fi
    od
}

init {
    atomic {
        run publisher(1, 1);
#if !CRASHES
        run publisher(2, 2);
#endif
        run consumer(FIRST_CONSUMER)
    }
}
