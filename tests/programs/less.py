# The pipeline of the old mail, `cat blah | less`, on a terminal of its own: pages on where it was.
import fcntl, os, pty, select, struct, sys, termios, time
HERE = os.environ["FREEZE_HERE"]; os.chdir(HERE)
with open("blah", "w") as f:
    for n in range(200000): f.write("line %d of the long text\n" % n)
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.environ["LESSSECURE"] = "1"
    os.execvp("bash", ["bash", "--norc", "-c", "cat blah | less"])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
def see(text):
    seen, end = b"", time.monotonic() + 60
    while text not in seen:
        if time.monotonic() > end: sys.exit("less does not show %r but %r" % (text, seen[-2000:]))
        if select.select([terminal], [], [], 0.1)[0]: seen += os.read(terminal, 65536)
see(b"line 3 ")
os.write(terminal, b"500g"); see(b"line 510 ")
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
os.write(terminal, b" "); see(b"line 530 ")
os.write(terminal, b"G"); see(b"line 199999 ")
os.write(terminal, b"?line 4242 \r"); see(b"line 4250 ")
os.write(terminal, b"q")
assert os.waitpid(pid, 0)[1] == 0
