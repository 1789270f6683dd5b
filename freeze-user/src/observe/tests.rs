//! The observer against real processes: what it tells, what it keeps, and that /proc agrees.

use crate::ids::Pid;
use crate::observe::events::How;
use crate::observe::mapview::Source;
use crate::observe::testing::{Subject, privileged};
use crate::observe::{Event, MapView, Observer};
use std::time::{Duration, Instant};

/// A python program that runs the lines it is told and answers each.
fn python() -> Subject {
    let mut python = Subject::start(
        "python3",
        &[
            "-uc",
            "import sys,os,socket,threading,time,signal,fcntl\nos.closerange(3,100)\nprint('ready')\nfor line in sys.stdin:\n exec(line)\n print('done')",
        ],
    );
    assert_eq!(python.line(), "ready");
    python
}

fn run(python: &mut Subject, line: &str) {
    python.say(line);
    assert_eq!(python.line(), "done", "{line}");
}

/// Drains until the condition holds for what was told.
fn until(observer: &mut Observer, mut holds: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut told = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds(&told) {
        assert!(Instant::now() < deadline, "only this was told: {told:?}");
        std::thread::sleep(Duration::from_millis(5));
        told.extend(observer.drain().unwrap());
    }
    told
}

fn assert_true_to_proc(observer: &mut Observer, root: Pid) {
    let differences = observer.audit(root).unwrap();
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn fds_are_followed_whatever_makes_them() {
    if !privileged() {
        return;
    }
    let mut python = python();
    let pid = python.pid();
    let mut observer = Observer::start().unwrap();
    observer.watch(pid).unwrap();
    assert_true_to_proc(&mut observer, pid);
    let steps: [(&str, &[(i32, How)]); 12] = [
        ("a=os.open('/dev/null',0)", &[(3, How::Opened)]),
        ("os.dup2(a,9)", &[(9, How::Duplicated)]),
        ("fcntl.fcntl(a,fcntl.F_DUPFD,20)", &[(20, How::Duplicated)]),
        ("os.close(a)", &[(3, How::Closed)]),
        ("p=os.pipe()", &[(3, How::Pipe), (4, How::Pipe)]),
        ("s,t=socket.socketpair()", &[(5, How::Socket), (6, How::Socket)]),
        ("socket.send_fds(s,[b'x'],[p[0]])", &[]),
        ("got=socket.recv_fds(t,1,4)", &[(7, How::Received)]),
        ("l=socket.create_server(('127.0.0.1',0))", &[(8, How::Socket)]),
        (
            "c=socket.create_connection(l.getsockname()); d=l.accept()",
            &[(10, How::Socket), (11, How::Socket)],
        ),
        ("e=os.eventfd(1)", &[(12, How::Opened)]),
        ("os.closerange(3,30)", &[]),
    ];
    for (line, expected) in steps {
        run(&mut python, line);
        let told = observer.drain().unwrap();
        let seen: Vec<(i32, How)> = told
            .iter()
            .filter_map(|e| match e {
                Event::Fd { fd, how, .. } => Some((*fd, *how)),
                _ => None,
            })
            .collect();
        if !expected.is_empty() {
            // Python opens and closes files of its own when it first needs a module.
            let opened_last = seen.len().saturating_sub(expected.len());
            assert_eq!(&seen[opened_last..], expected, "{line}: {told:?}");
        }
        // Only what the events left is looked at: nothing may be in doubt by now.
        assert_true_to_proc(&mut observer, pid);
    }
    assert_eq!(observer.lost(), 0);
}

#[test]
fn a_pipeline_is_told_and_its_deaths_too() {
    if !privileged() {
        return;
    }
    let mut python = python();
    let pid = python.pid();
    let mut observer = Observer::start().unwrap();
    observer.watch(pid).unwrap();
    run(
        &mut python,
        "import subprocess; q=subprocess.Popen(['sh','-c','cat | cat | sleep 100; exit 3'],stdin=subprocess.PIPE)",
    );
    let three = |told: &[Event]| {
        let count = |name: &str| {
            told.iter()
                .filter(|e| matches!(e, Event::Executed { comm, .. } if comm == name))
                .count()
        };
        count("cat") == 2 && count("sleep") == 1
    };
    let told = until(&mut observer, three);
    // Until the programs have loaded their libraries.
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        told.iter()
            .any(|e| matches!(e, Event::Forked { parent, .. } if *parent == pid))
    );
    assert_true_to_proc(&mut observer, pid);
    let map = observer.map(pid).unwrap();
    assert_eq!((map.processes.len(), map.source), (5, Source::Events));
    // Three pipes inside: python to cat, cat to cat, cat to sleep.
    let inside = map
        .joints
        .iter()
        .filter(|j| !j.from.is_empty() && !j.to.is_empty());
    assert_eq!(inside.count(), 3, "{map}");
    // The same as /proc alone has it, but for the source.
    assert_eq!(
        map,
        MapView {
            source: Source::Events,
            ..MapView::from_proc(pid).unwrap()
        }
    );
    let sleep = map.processes.iter().find(|p| p.comm == "sleep").unwrap().pid;
    let shell = map.processes.iter().find(|p| p.comm == "sh").unwrap().pid;
    nix::sys::signal::kill(sleep.nix(), nix::sys::signal::Signal::SIGKILL).unwrap();
    run(&mut python, "q.stdin.close()");
    let death = |told: &[Event], of: Pid| {
        told.iter()
            .find(|e| matches!(e, Event::Death { pid, .. } if *pid == of))
            .cloned()
    };
    let told = until(&mut observer, |told| death(told, shell).is_some());
    assert_eq!(
        death(&told, sleep),
        Some(Event::Death {
            pid: sleep,
            code: None,
            signal: Some(9),
            watched_root: pid
        })
    );
    assert_eq!(
        death(&told, shell),
        Some(Event::Death {
            pid: shell,
            code: Some(3),
            signal: None,
            watched_root: pid
        })
    );
    // Not waited for yet.
    assert_true_to_proc(&mut observer, pid);
    assert!(
        observer
            .map(pid)
            .unwrap()
            .processes
            .iter()
            .any(|p| p.pid == shell && p.dead)
    );
    run(&mut python, "q.wait()");
    std::thread::sleep(Duration::from_millis(300));
    assert_true_to_proc(&mut observer, pid);
    assert_eq!(observer.members(pid).collect::<Vec<_>>(), [pid]);
    python.kill();
    let told = until(&mut observer, |told| death(told, pid).is_some());
    assert!(death(&told, pid).unwrap().is_abnormal_death());
}

#[test]
fn threads_groups_names_and_orphans_are_kept() {
    if !privileged() {
        return;
    }
    let mut python = python();
    let pid = python.pid();
    let mut observer = Observer::start().unwrap();
    observer.watch(pid).unwrap();
    run(
        &mut python,
        "go=threading.Event(); ts=[threading.Thread(target=go.wait) for _ in range(4)]; [t.start() for t in ts]",
    );
    assert_true_to_proc(&mut observer, pid);
    assert_eq!(observer.map(pid).unwrap().processes[0].threads.len(), 5);
    run(&mut python, "open('/proc/self/comm','w').write('renamed')");
    assert_eq!(observer.map(pid).unwrap().processes[0].comm, "renamed");
    // A fork in a program with threads: the child's fds cannot be a mere copy.
    run(&mut python, "a=os.fork() or (time.sleep(100), os._exit(0))");
    assert_true_to_proc(&mut observer, pid);
    run(
        &mut python,
        "go.set(); [t.join() for t in ts]; os.kill(a,9); os.waitpid(a,0)",
    );
    std::thread::sleep(Duration::from_millis(300));
    assert_true_to_proc(&mut observer, pid);
    // A daemon: its parent, a subshell, ends.
    let mut shell = Subject::start(
        "sh",
        &["-c", "echo ready; read x; (setsid sleep 100 & echo $!); read y"],
    );
    assert_eq!(shell.line(), "ready");
    observer.watch(shell.pid()).unwrap();
    shell.say("go");
    shell.line();
    let told = until(&mut observer, |told| {
        told.iter()
            .any(|e| matches!(e, Event::Executed { comm, .. } if comm == "sleep"))
    });
    let daemon = told
        .iter()
        .find_map(|e| match e {
            Event::Executed { pid, comm } if comm == "sleep" => Some(*pid),
            _ => None,
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_true_to_proc(&mut observer, shell.pid());
    let map = observer.map(shell.pid()).unwrap();
    let entry = map.processes.iter().find(|p| p.pid == daemon).unwrap();
    assert_ne!(entry.ppid, shell.pid(), "an orphan stays in the map");
    assert_eq!((entry.sid, entry.pgid), (daemon, daemon));
    nix::sys::signal::kill(daemon.nix(), nix::sys::signal::Signal::SIGKILL).unwrap();
    observer.unwatch(shell.pid());
    assert_eq!(observer.roots().collect::<Vec<_>>(), [pid]);
}

#[test]
fn a_loss_ends_in_a_true_map() {
    if !privileged() {
        return;
    }
    let mut python = python();
    let pid = python.pid();
    let mut observer = Observer::with_ring(4096).unwrap();
    observer.watch(pid).unwrap();
    let storm = "n=time.time()+2; f=[]\nwhile time.time()<n:\n  f.append(os.dup(0)); f.append(os.dup(1)); os.close(f.pop(0))\n  if len(f)>60: [os.close(f.pop()) for _ in range(50)]\n  if len(f)%7==0:\n   c=os.fork()\n   if c==0: os._exit(0)\n   os.waitpid(c,0)";
    python.say(&format!("exec({storm:?})"));
    let mut resynced = 0;
    let end = Instant::now() + Duration::from_millis(1800);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        resynced += observer
            .drain()
            .unwrap()
            .iter()
            .filter(|e| matches!(e, Event::Resynced { .. }))
            .count();
    }
    assert_eq!(python.line(), "done");
    std::thread::sleep(Duration::from_millis(1000));
    assert!(resynced > 0 && observer.lost() > 0, "the ring was never full");
    assert_true_to_proc(&mut observer, pid);
    assert_eq!(observer.members(pid).collect::<Vec<_>>(), [pid]);
}

#[test]
fn nothing_is_told_of_others_and_nothing_after_the_end() {
    if !privileged() {
        return;
    }
    let (mut watched, mut other) = (python(), python());
    let mut observer = Observer::start().unwrap();
    observer.watch(watched.pid()).unwrap();
    observer.drain().unwrap();
    run(&mut other, "x=os.open('/dev/null',0)");
    assert_eq!(observer.drain().unwrap(), []);
    observer.unwatch(watched.pid());
    run(&mut watched, "x=os.open('/dev/null',0)");
    assert_eq!(observer.drain().unwrap(), []);
    assert!(observer.live().processes().is_empty());
    let error = observer.watch(Pid(i32::MAX)).unwrap_err();
    assert_eq!(error.exit_code(), 4);
}

#[test]
fn storms_from_many_threads_end_in_a_true_map() {
    if !privileged() {
        return;
    }
    // The ring is large enough or not: either way the map must be true when it is quiet.
    for ring in [8192, 1 << 20] {
        let mut python = python();
        let pid = python.pid();
        let mut observer = Observer::with_ring(ring).unwrap();
        observer.watch(pid).unwrap();
        let storm = "def work():\n n=time.time()+1\n while time.time()<n:\n  a=os.dup(0); b=os.open('/dev/null',0); r,w=os.pipe(); os.dup2(a,b); os.close(r); os.close(a); os.close(w); os.close(b)\n  c=os.fork()\n  if c==0:\n   os.dup(1); os._exit(0)\n  os.waitpid(c,0)\nts=[threading.Thread(target=work) for _ in range(4)]\n[t.start() for t in ts]; [t.join() for t in ts]\nkeep=os.pipe()";
        python.say(&format!("exec({storm:?})"));
        let end = Instant::now() + Duration::from_millis(1200);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            observer.drain().unwrap();
        }
        assert_eq!(python.line(), "done");
        std::thread::sleep(Duration::from_millis(1000));
        assert_true_to_proc(&mut observer, pid);
        assert_eq!(observer.members(pid).collect::<Vec<_>>(), [pid]);
    }
}

#[test]
fn an_observer_may_live_in_any_thread() {
    fn may_move<T: Send>() {}
    may_move::<Observer>();
    may_move::<crate::observe::FaultLog>();
}
