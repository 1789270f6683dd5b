//! docs/kinds.md, as the registries have it.

use super::{FD_KINDS, PROCESS_KINDS, memory};

/// docs/kinds.md: what is carried and what is refused, as the registries have it.
pub fn markdown() -> String {
    let mut out = String::from(
        "# What freeze carries, and what it refuses\n\n\
         Generated from the registries in `freeze-user/src/kinds/`; `FREEZE_BLESS=1 cargo test -p freeze-user docs` \
         writes it anew.\nWhat is refused is refused before anything is stopped, all of it at once, each object with \
         its remedy (`freeze check PID` shows the verdict alone).\n\n## Of every process\n\n| kind | carried |\n|---|---|\n",
    );
    let tidy = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for k in PROCESS_KINDS {
        out += &format!("| {} | {} |\n", k.tag, tidy(k.about));
    }
    out += "\n## Open file descriptions\n\nFor each: access mode, status flags, owner and signal of SIGIO, and who shares it.\n\n| kind | carried |\n|---|---|\n";
    for k in FD_KINDS {
        out += &format!("| {} | {} |\n", k.tag, tidy(k.about));
    }
    out += "\n## Refused mappings\n\n| mapping | why | what to do |\n|---|---|---|\n";
    for (flag, why, remedy) in memory::REFUSED_FLAGS {
        out += &format!(
            "| VmFlags `{}` | {why} | {remedy} |\n",
            String::from_utf8_lossy(flag)
        );
    }
    for (name, why, remedy) in memory::REFUSED_NAMES {
        out += &format!("| `{}…` | {why} | {remedy} |\n", String::from_utf8_lossy(name));
    }
    out += "\n## Refused otherwise\n\n\
        - descriptors that no kind above claims: userfaultfd, perf events, eBPF programs and links, \
          devices with state of their own, sockets of other families;\n\
        - the other end of a pipe, fifo, socket or terminal pair held by a process outside the tree: every holder is named;\n\
        - mounts of file systems that cannot be made anew and are not mounted where freeze runs, idmapped mounts, overlays of \
          relative paths, 32-bit programs, kernel \
          threads, pid 1, freeze itself, a process traced by somebody else, a zombie without its parent;\n\
        - a vfork under way, threads with tables or namespaces of their own, a pid namespace for children whose first process has ended, keyrings, core-scheduling cookies, shadow stacks, Landlock domains, triggers of pressure (PSI);\n\
        - an image that would go to where a process of the checkpoint decides what may be opened (fanotify with FAN_OPEN_PERM and its like);\n\
        - unlinked files, and those of a tree of files of the checkpoint's own, with a lease for writing whose holder cannot read them: to read them would break it;\n\
        - files that became immutable or append-only after they were opened for writing, and unlinked ones whose directory did (chattr), or is mounted read-only by now, and unix sockets that \
          are bound in such a directory;\n\
        - a program whose file nobody may execute any more (chmod); files of /proc that told of a thread that has ended, other \
          than the first of its process;\n\
        - descriptors that came with an empty message of a unix socket, if that is not the first of its queue and was looked at \
          before, by a checkpoint or by MSG_PEEK;\n\
        - a request to mount that the daemon of an autofs mount has not read yet, and such a mount without its daemon;\n\
        - files that neither path nor handle leads to, among them those on a mount that is in no tree any more (umount -l) of a \
          file system that is not mounted where freeze runs either; unlinked ones on any such mount, and where something is mounted \
          over their directory by now and the file system knows no handles.\n\
        \n## What is lost\n\n\
        Known, and without a refusal, because the kernel does not show it or because it changes nothing but what others see:\n\n\
        - system call user dispatch, where the kernel does not tell of it (before Linux 6.4);\n\
        - errors of datagram sockets that were not told yet, packets that a tun device or a packet socket had not \
          delivered, addresses that a bridge has learned;\n\
        - the signal that a first process wants at its parent's death, after a restore with --detach or by the agent: the \
          restorer, which is its parent, leaves at once or may (it is warned of);\n\
        - of a network: eBPF programs that are attached to it or to one of its devices, tunnels of l2tp and fou, segment \
          routing, endpoints and limits of MPTCP, labels of IPv6 addresses, security marks of tracked connections, actions of traffic control by themselves, \
          features that ethtool has switched, which processors serve a queue (RPS, XPS) and how long it is put off; of the outer end of a pair, VLANs and fixed addresses on its bridge;\n\
        - to which user namespace a pid namespace belongs, and by which the memory of a process is judged that may not be \
          dumped: after a restore it is freeze's, so that in a container with a user namespace of its own nobody can mount a \
          further proc of its pid namespace or go there (setns), and such a process cannot read its own /proc/self/environ;\n\
        - where the kernel has no fanotify permission events, who watches a file whose contents travel in the image (inotify) is told that it \
          was opened and read, as it is of a fifo, a pseudo terminal and a file that is leased;\n\
        - in a pid namespace of the checkpoint's own, who used a System V object last, if that process has ended;\n\
        - the register r10 of a thread that waits in epoll_wait or epoll_pwait with a timeout, which holds what is left of it, \
          and after epoll_pwait2 a number of milliseconds: C libraries do not look at it again, an own system call might;\n\
        - the most workers of a thread, where they were given through an io_uring instance that is closed since;\n\
        - where memory was unmapped and mapped anew under a buffer that is registered with an io_uring, the pages that the buffer still had: registered again, it has the new ones;\n\
        - the rest of a call that had moved a part of its data and waited for more (a write of more than a pipe or socket holds, \
          recv with MSG_WAITALL): after any checkpoint it returns the part, as after a signal;\n\
        - datagrams in the queue of a socket that cannot be sent to it again, as one from a network that is gone (each is warned \
          of), and what came along with those that can (time to live, type of service, device);\n\
        - the mark of out-of-band data that was taken, or taken in line, a program that chooses among sockets of one port \
          (SO_ATTACH_REUSEPORT_CBPF) where freeze may not look for it, whether a unix socket tells how much more waits (SO_INQ) where it may not, the anycast addresses that an IPv6 socket shares in \
          (IPV6_JOIN_ANYCAST) where it may not, the device by which multicasts go (IP_MULTICAST_IF) where it may not or nothing else shows that there are any, and whether an IPv6 socket that is connected takes IPv4 \
          when it is connected anew (IPV6_V6ONLY);\n\
        - the labels of IPv6 flows that a socket has a lease of (IPV6_FLOWLABEL_MGR);\n\
        - a Landlock domain, where the kernel does not let freeze look or of a program with CAP_SYS_ADMIN and without no_new_privs;\n\
        - the session keyring (keyrings(7)) and the keys in it: a restored program has the restorer's;\n\
        - whose process a connection to a unix socket was that waits to be accepted, if it has ended: another of the checkpoint \
          stands for it (SO_PEERCRED);\n\
        - the TTL of multicasts that an accepted TCP connection took over from its listener, which means nothing to it;\n\
        - notifications that a TCP connection has sent without copying (MSG_ZEROCOPY) and that were not read yet, and how many there were: \
          later ones count from 0;\n\
        - TCP_FASTOPEN_CONNECT of a connection that would be put off if it were made again (there is a cookie for its address, or none is needed);\n\
        - the I/O context that threads share, or processes of which neither is the other's parent (CLONE_IO): each has one of its own, with the same priority;\n\
        - that a thread does the work of storage (PR_SET_IO_FLUSHER), if it has given up CAP_SYS_RESOURCE since;\n\
        - empty datagrams that were looked at before, by an earlier checkpoint or by MSG_PEEK, where freeze may not look for them;\n\
        - whether a file that was opened without a name (O_TMPFILE) was never to have one (O_EXCL);\n\
        - a bind mount of a unix socket that the checkpoint itself has bound: restored, the socket is bound anew, and the mount still \
          leads to the old one;\n\
        - TCP_QUICKACK, which the kernel itself takes back in the course of a connection;\n\
        - of two SIGTRAPs that wait, one for a thread and one for its process, one, and that such a signal was for the process; \
          who sent a SIGCONT that ended a stop in the very moment of the checkpoint;\n\
        - the former name of an unlinked file whose name is another's by now, as /proc/PID/fd shows it;\n\
        - whose child a process is among the threads of its parent (__WNOTHREAD), and so at whose end it gets the signal that it \
          wants at its parent's death: the first's;\n\
        - rights to I/O ports (ioperm, iopl);\n\
        - whether the address of a bridge was given to it or is that of one of its ports, which it follows no more; that a device \
          has been without a carrier since it was made, and so without a route for its multicasts; the name of what a second \
          mount of cgroup2 was made from; the wishes for the next ids of System V objects (msg_next_id and its like);\n\
        - that a process registered itself for membarrier(2) with core serializing or rseq alone: it may use the private \
          expedited command, too;\n\
        - that a private mapping of a file was counted as writable once (VmFlags ac), if it can be neither written nor read now;\n\
        - to which user namespace a file system in memory or a proc belongs that is made anew: to freeze's, so that in a container with \
          a user namespace of its own nobody can change its options (mount -o remount), those of single mounts excepted;\n\
        - to which user namespace a time namespace belongs that was made and not entered by its maker: to freeze's, so that nobody there can go to it (setns), and its offsets \
          cannot be set from within;\n\
        - a signal that was sent with SI_TIMER and the number of a timer of its own, while that timer's waits as well;\n\
        - times of change (ctime) of files whose inotify events are brought about again, which others who watch them hear of too.\n\
        \n## What begins anew\n\n\
        - CPU time, start time, context switches, page faults and other counters: no kernel lets them be set;\n\
        - the timeout of a sigtimedwait, a semtimedop, an io_getevents, an io_uring_enter, or of a call on a socket with SO_RCVTIMEO or \
          SO_SNDTIMEO that was waiting, and that of any call that was resumed before by something else than freeze: it may \
          wait longer after a checkpoint or restore, never less (poll, select, epoll_wait, futex and sleeps end when they \
          would have, where the kernel has /proc/PID/sched);\n\
        - how often a timer had expired while its signal was blocked: it has expired once, and counts on in phase;\n\
        - of packet filters the allowance of a limit, which is full, and the place in a sequence (numgen inc, statistic --mode \
          nth); tables of nf_tables, chains without a name, and tracked connections have new \
          numbers, and these count from 0 (nf_conntrack_acct).\n";
    out += "\n## Whole programs\n\nUnmodified, in use while they are checkpointed, killed, restored, and used on.\n\n\
        | program | what shows that it did not notice |\n|---|---|\n";
    for (program, shows) in PROGRAMS {
        out += &format!("| {program} | {shows} |\n");
    }
    out += "\nTried by hand besides, in ordinary use: checkpointed twice and left running, ended and restored twice (Debian 12, Linux \
        6.18, 2026-11-29); these went on without a fault.\n\n";
    for (sort, programs) in TRIED {
        out += &format!("- {sort}: {programs}\n");
    }
    out
}

/// Programs of Debian that no test runs, by sort.
const TRIED: &[(&str, &str)] = &[
    (
        "servers",
        "apache2 (prefork with php, event), php-fpm, lighttpd, varnish, squid, unbound, dnsmasq, mosquitto, etcd, \
         beanstalkd, prometheus, influxdb, rsyslog, cron, atd, dbus-daemon, slapd, samba, dovecot, exim, transmission, mpd, \
         pulseaudio, pipewire, minetest; sshd with a session whose client is outside",
    ),
    (
        "languages and jobs",
        "erlang, Go, node cluster, gunicorn, uvicorn, supervisord, puma, ruby and perl with threads, numpy, OpenMPI, java with \
         other collectors, socat, iperf3, rsync, git daemon, git gc, borg, bonnie++, sysbench, fio with io_uring, libaio and others; wget, whose server is outside",
    ),
    (
        "desktops, sandboxes",
        "Xvfb with xclock and xterm, LibreOffice and Chromium headless, qemu, runc (which takes it for stopped afterwards), \
         bubblewrap, firejail",
    ),
    (
        "in a terminal",
        "vim, nano, emacs, htop, mc, lynx, w3m, screen, irssi, weechat, gdb at rest, sqlite3, and the prompts of python, bc, \
         lua, tcl, guile, sbcl, ocaml, octave, R, gnuplot, maxima, racket, ghci, erl, iex, clojure, irb, php, node",
    ),
];

/// Programs of Debian that `tests/tests/programs.rs` takes through a checkpoint that leaves them running, one that ends
/// them, and a restore, while they are in use; and what shows that they did not notice.
const PROGRAMS: &[(&str, &str)] = &[
    (
        "postgresql",
        "a transaction that is open across the cut commits; the rows are all there; a clean shutdown follows",
    ),
    (
        "mariadb",
        "a transaction that is open across the cut commits; the check of the table passes; a clean shutdown follows",
    ),
    (
        "nginx",
        "two clients on kept connections load pages from its workers all the while; reload and quit work afterwards",
    ),
    (
        "redis",
        "a MULTI begun before is executed after, an answer nobody has read yet arrives; the append-only file is sound",
    ),
    (
        "memcached",
        "half a command comes before the cut and half after it; every value is there",
    ),
    (
        "haproxy",
        "half a request on a kept connection comes before the cut and half after it; a reload by its master works afterwards",
    ),
    (
        "bind9",
        "half a question comes before the cut and half after it; what was added to its zone before and after is in the file",
    ),
    (
        "sqlite3",
        "a write transaction commits after the cut, a second writer waits for it; the integrity check passes",
    ),
    (
        "python3",
        "multiprocessing workers with queues, locks and shared memory, and asyncio connections, lose nothing",
    ),
    (
        "nodejs",
        "timers, an HTTP server with a kept connection, a worker thread and a child process go on",
    ),
    (
        "openjdk",
        "a pool of threads, hand-overs between threads and garbage collection go on; every sum is right",
    ),
    (
        "bash in tmux",
        "a job in the background, one stopped by ^Z, and a half-typed line are still there",
    ),
    (
        "cat blah | less",
        "pages on from where it was, on a terminal inside the checkpoint",
    ),
    (
        "cat big | gzip",
        "what comes out is byte for byte that of an undisturbed run",
    ),
    (
        "make -j2",
        "the library that is being built is byte for byte that of an undisturbed build",
    ),
    (
        "ffmpeg",
        "the film that is being encoded is byte for byte that of an undisturbed run",
    ),
    (
        "stress-ng",
        "memory, pipes, timers, futexes, semaphores and signals verify themselves",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_kinds_md_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kinds.md");
        if std::env::var_os("FREEZE_BLESS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            there == markdown(),
            "docs/kinds.md is out of date: FREEZE_BLESS=1 cargo test -p freeze-user docs"
        );
    }
}
