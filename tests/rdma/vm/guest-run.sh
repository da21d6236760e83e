# The guest's second program, with the host's files as its root: prepares what the command needs, runs it, and ends
# both of its outputs with the mark that guest.py waits for. Its orders lie in the folder below.

orders=/run/triptych-vm
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mkdir /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
echo localhost > /proc/sys/kernel/hostname # a name that can be looked up

writable=$(< $orders/writable)
if [ -n "$writable" ]; then
    # cache=mmap: what is written goes to the host at once, as without a cache, and files can be mapped.
    mkdir -p "$writable"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=mmap writable "$writable"
fi

for port in /sys/class/virtio-ports/*; do
    declare "$(< "$port/name")=/dev/${port##*/}" # sets `output` and `errors`
done
# Through pipes, because a port can't be opened twice, which is what writing to /dev/stderr would do.
exec > >(exec cat > "$output") 2> >(exec cat > "$errors")

. $orders/guest-network.sh

ulimit -l unlimited # verbs lock the memory that they register
mapfile -d '' -t environment < $orders/environment
exec 3>&2 2> /dev/null # else bash itself has its say there when a signal ends the command
# In a session of its own: what the command does to its process group doesn't reach this script.
(exec env -i -C "$(< $orders/folder)" "${environment[@]}" setsid bash -c "$(< $orders/command)") < /dev/null 2>&3 3>&-
status=$?

sync # writes out what was mapped
printf '\0%s%03d' "$(< $orders/mark)" $status | tee /dev/fd/3
sleep infinity
